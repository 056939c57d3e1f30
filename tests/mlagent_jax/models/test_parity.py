"""Logits, log-probs and gradients equal those of transformers, over a matrix of small random checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mlagent_jax import models
from mlagent_jax.models import hugging_face

NAMES = (
    *("qwen2", "qwen2-untied-mha-linear", "qwen2-yarn", "qwen3", "qwen3-bias-yarn"),
    *("llama-mqa", "llama-bias-tied"),
)
LENGTHS = (90, 17, 1)  # across the borders of attention's blocks, and right-padded


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(1, 97, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    return np.where(mask, tokens, 0), mask


def reference_logits(model, tokens, mask):
    return model(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64))).logits


@pytest.mark.parametrize("name", [*NAMES[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_logits(name, checkpoint, batch):
    made, (tokens, mask) = checkpoint(name), batch
    _, graph, params = hugging_face.load(made.folder, dtype=jnp.float32)

    @jax.jit
    def logits(params, tokens, segment_ids):
        hidden = models.hidden_states(graph, params, tokens, segment_ids=segment_ids)
        return models.logits(graph, params, hidden)

    ours = np.asarray(logits(params, tokens, mask.astype(np.int32)))
    with torch.no_grad():
        theirs = reference_logits(made.reference, tokens, mask).numpy()
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=2e-4, rtol=0)
    assert np.isfinite(ours).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_log_probs_and_gradients(name, checkpoint, batch, tmp_path):
    made, (tokens, mask) = checkpoint(name), batch
    _, graph, params = hugging_face.load(made.folder, dtype=jnp.float32)
    inputs, targets, weights = tokens[:, :-1], tokens[:, 1:], mask[:, 1:]

    def loss(params):
        hidden = models.hidden_states(
            graph, params, jnp.asarray(inputs), segment_ids=jnp.asarray(mask[:, :-1], jnp.int32)
        )
        log_probs, _ = models.token_log_probs(graph, params, hidden, jnp.asarray(targets), chunk_size=13)
        return -jnp.where(weights, log_probs, 0).sum() / weights.sum(), log_probs

    (_, log_probs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    model = made.reference
    model.zero_grad()
    theirs = torch.log_softmax(reference_logits(model, inputs, mask[:, :-1]), -1)
    theirs = torch.gather(theirs, -1, torch.tensor(targets)[..., None])[..., 0]
    (-(theirs * torch.tensor(weights)).sum() / weights.sum()).backward()
    difference = np.abs(np.asarray(log_probs) - theirs.detach().numpy())[weights]
    assert (difference / np.abs(theirs.detach().numpy()[weights])).max() < 1e-4

    # Their gradients in our layout: saved as if they were the weights of a checkpoint, and loaded.
    theirs = {path: weight.grad for path, weight in model.named_parameters()}
    model.save_pretrained(tmp_path, state_dict=theirs)
    _, _, expected = hugging_face.load(tmp_path, dtype=jnp.float32)
    for (path, ours), want in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        error = np.linalg.norm(ours - want) / (np.linalg.norm(want) + 1e-8)
        # A bias on keys shifts all scores of a query alike: its true gradient is 0, and what is left is rounding.
        assert error < 1e-4 or np.abs(ours - want).max() < 1e-6, jax.tree_util.keystr(path)
