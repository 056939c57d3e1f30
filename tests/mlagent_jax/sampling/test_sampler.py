"""The sampler as a library: text in, text out."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.models.tokenizer import PROBE, Tokenizer
from mlagent_jax.sampling import Distribution, Request, Sampler, load

PROMPTS = ["def f(x):", "Action:", "Next:\n", [70, 71, 72]]


@pytest.fixture(scope="module")
def tokenizer(speaker):
    return Tokenizer.load(speaker)


@pytest.fixture(scope="module")
def sampler(speaker):
    return Sampler(*load(speaker), slots=4)


@pytest.fixture(scope="module")
def free(sampler):
    """What is sampled without a stop string."""
    return sampler.generate(PROMPTS, n=2, max_new_tokens=40, seed=7)


def test_spellings_are_what_tokens_decode_to(tokenizer):
    spellings = tokenizer.spellings()
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, (200, 9)).tolist()
    for row in [tokenizer.encode(PROBE), *ids]:
        assert b"".join(spellings[token] for token in row).decode(errors="replace") == tokenizer.decode(row)


def test_a_generation_is_its_tokens_its_text_and_its_reason(sampler, free, tokenizer):
    assert [len(samples) for samples in free] == [2] * 4
    for sample in (sample for samples in free for sample in samples):
        ended = sample.finish_reason == "stop"
        assert (sample.token_ids[-1] == tokenizer.eos_id) == ended
        assert ended or len(sample.token_ids) == 40
        known = [token for token in sample.token_ids if token < tokenizer.vocab_size]
        assert sample.text == tokenizer.decode(known[: len(known) - ended])
        assert len(sample.log_probs) == len(sample.token_ids)
    assert len({sample.text for samples in free for sample in samples}) == 8


def test_deltas_joined_are_the_generation(sampler, free):
    texts = {}
    for delta in sampler.stream(PROMPTS, n=2, max_new_tokens=40, seed=7):
        texts.setdefault((delta.prompt, delta.sample), []).append(delta.text)
    assert {key: "".join(parts) for key, parts in texts.items()} == {
        (prompt, sample): free[prompt][sample].text for prompt in range(4) for sample in range(2)
    }
    assert any(len(parts) > 1 for parts in texts.values())


@pytest.mark.slow
def test_a_stop_string_across_tokens_ends_the_same_sample_earlier(sampler, free, tokenizer):
    spellings = tokenizer.spellings()
    for prompt, samples in zip(PROMPTS, free, strict=True):
        whole = samples[1].text
        middle = len(whole) // 2
        stop = next(
            whole[start : start + 3]
            for start in range(middle, len(whole))
            if "\N{REPLACEMENT CHARACTER}" not in whole[start : start + 3]
        )
        cut = sampler.generate([prompt], n=2, max_new_tokens=40, seed=7, stop=["never there", stop])[0][1]
        assert cut.finish_reason == "stop"
        assert cut.text == whole[: whole.find(stop)]
        count = len(cut.token_ids)
        assert cut.token_ids == samples[1].token_ids[:count]
        bytes_of = [spellings[token] if token < len(spellings) else b"" for token in cut.token_ids]
        assert stop.encode() in b"".join(bytes_of) and stop.encode() not in b"".join(bytes_of[:-1])
        np.testing.assert_allclose(cut.log_probs, samples[1].log_probs[:count], atol=1e-5)


@pytest.mark.slow
def test_requests_of_every_kind_share_a_batch_and_do_not_see_each_other(sampler):
    asked = [
        dataclasses.replace(Request(place, sampler.encode(prompt), 12, seed=3), **settings)
        for place, (prompt, settings) in enumerate(
            zip(
                PROMPTS * 2,
                [
                    {},
                    {"distribution": Distribution(0)},
                    {"distribution": Distribution(0.7, top_k=5)},
                    {"distribution": Distribution(top_p=0.6), "stop": (b"e", b"o")},
                ]
                * 2,
                strict=True,
            )
        )
    ]

    def outcome(requests):
        batch, found = sampler.batch(16, 12, 4), {}
        batch.submit(requests)
        while batch.busy:
            for progress in batch.step():
                found.setdefault(progress.id, []).extend(progress.token_ids)
        return found

    together = outcome(asked)
    for request in asked[:4]:
        assert outcome([request])[request.id] == together[request.id]
        assert together[request.id] == together[request.id + 4]


def test_a_cancelled_request_leaves_its_slot_and_the_others_alone(sampler):
    requests = [Request(place, sampler.encode("def"), 40, seed=place) for place in range(6)]
    expected = sampler.generate(["def"] * 6, max_new_tokens=40, seed=range(6))
    batch, found = sampler.batch(16, 40, 4), {}
    batch.submit(requests)
    batch.step()
    batch.cancel({0, 5, 99})
    while batch.busy:
        for progress in batch.step():
            found.setdefault(progress.id, []).extend(progress.token_ids)
    assert set(found) == {1, 2, 3, 4}
    assert found[4] == expected[4][0].token_ids


def test_a_run_s_checkpoints_load_by_workdir_stage_and_step(speaker, tokenizer, tmp_path):
    config, _, params = hugging_face.load(speaker)
    stage = tmp_path / "checkpoints" / "sft"
    with Checkpointer(stage) as saved:
        saved.save(1, {"policy": params, "optimizer": jnp.zeros(3)}, {})
        saved.save(2, {"policy": {**params, "final_norm": {"scale": params["final_norm"]["scale"] * 2}}}, {})
    hugging_face.describe(stage / "model", config, tokenizer)
    scales = [load(place)[0].params["final_norm"]["scale"] for place in (tmp_path, stage, stage / "1")]
    np.testing.assert_array_equal(scales[0], scales[1])
    np.testing.assert_array_equal(scales[0], scales[2] * 2)
    model, _ = load(stage, dtype="bfloat16")
    assert model.params["final_norm"]["scale"].dtype == jnp.bfloat16
    assert load(speaker)[0].stop_token_ids == (tokenizer.eos_id,)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompts": "text"}, "prompts is one string"),
        ({"prompts": ["a", ""]}, "prompt 1: the prompt is empty"),
        ({"prompts": [[400]]}, "token id 400"),
        ({"prompts": [[1] * 190]}, "190 tokens and max_new_tokens=8 .* 192"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"n": 0}, "n=0"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"stop": "text"}, "stop='text' is one string"),
        ({"stop": [""]}, "empty"),
        ({"temperature": -1}, "temperature=-1"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_refused_by_name(sampler, arguments, named):
    with pytest.raises(ValueError, match=named):
        sampler.generate(**{"prompts": ["a"], "max_new_tokens": 8, **arguments})
