"""A prompt of 15,000 tokens at the sampler's own sizes: exact against transformers, and in nobody's way."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.sampling import Batch, Distribution, Request, SamplerConfig
from mlagent_jax.sampling.batch import FirstRuns

LONG, NEW = 15_000, 16


@pytest.fixture(scope="module")
def reference():
    """A Qwen2 of transformers with 16k positions and random weights, fp32; its attention keeps no [time, time]."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=16_384,
        rope_theta=1e6,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + ("norm" in name))
    return model


@pytest.mark.slow
def test_15000_tokens_are_read_in_parts_while_short_requests_come_and_go(reference, tmp_path):
    import torch

    reference.save_pretrained(tmp_path)
    _, graph, params = hugging_face.load(tmp_path, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    long = tuple(rng.integers(0, 97, LONG).tolist())
    requests = [Request(0, long, NEW)]
    requests += [Request(number, tuple(rng.integers(0, 97, 5 * number).tolist()), NEW) for number in range(1, 7)]

    first_runs, ran = FirstRuns(), []

    def run(key, program, *args):
        ran.append(key[0])
        return first_runs(key, program, *args)

    config = SamplerConfig(max_new_tokens=NEW, distribution=Distribution(0), slots=3, steps_per_call=8)
    batch = Batch(graph, config, params, LONG, run=run)
    batch.submit(requests)
    tokens, log_probs, ended = {}, {}, []
    while batch.busy:
        for progress in batch.step():
            tokens.setdefault(progress.id, []).extend(progress.token_ids)
            log_probs.setdefault(progress.id, []).extend(progress.log_probs.tolist())
            ended += [progress.id] if progress.finish_reason else []

    # Eight parts; two slots make the six short completions meanwhile, 15 tokens each after their first, 8 a call.
    assert ran.count("prefill-part") == 8
    between = "".join("p" if name == "prefill-part" else "d" for name in ran if name in ("prefill-part", "decode"))
    assert between.startswith("pdpdpdpdpdpd")
    assert list(tokens)[-1] == 0 and ended[-1] == 0, "the short ones end before the long one's first token"
    # Empty, start, decode; two short prompts at once; parts of 2,048, and the last one's bucket.
    assert first_runs.count == 6

    for request in requests:
        with torch.no_grad():
            sequence = torch.tensor([[*request.prompt, *tokens[request.id]]])
            logits = reference(sequence, use_cache=False, logits_to_keep=NEW + 1).logits[0, :-1]
        theirs = torch.log_softmax(logits, dim=-1)
        assert tokens[request.id] == theirs.argmax(dim=-1).tolist()
        np.testing.assert_allclose(log_probs[request.id], theirs.max(dim=-1).values, atol=2e-4)
