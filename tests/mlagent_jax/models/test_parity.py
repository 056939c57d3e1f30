"""Logits, log-probs and gradients equal those of transformers, over a matrix of small random checkpoints."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mlagent_jax import models
from mlagent_jax.checkpoints import hugging_face

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


@functools.partial(jax.jit, static_argnums=0)
def our_logits(graph, params, tokens, segment_ids):
    hidden = models.hidden_states(graph, params, tokens, segment_ids=segment_ids)
    return models.logits(graph, params, hidden)


def reference_logits(model, tokens, mask):
    return model(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64))).logits


@pytest.mark.parametrize("name", [*NAMES[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_logits(name, checkpoint, batch):
    made, (tokens, mask) = checkpoint(name), batch
    _, graph, params = hugging_face.load(made.folder, dtype=jnp.float32)

    ours = np.asarray(our_logits(graph, params, tokens, mask.astype(np.int32)))
    with torch.no_grad():
        theirs = reference_logits(made.reference, tokens, mask).numpy()
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=2e-4, rtol=0)
    assert np.isfinite(ours).all()


def padded(tokens, mask):
    """Inputs, segments, targets and which targets count: each sequence a row of its own."""
    return tokens[:, :-1], mask[:, :-1].astype(np.int32), tokens[:, 1:], mask[:, 1:]


def packed(tokens, mask):
    """The same with all sequences one after the other in one row, and some padding after them."""
    inputs, segments, targets, weights = padded(tokens, mask)
    kept = segments > 0
    numbers = np.broadcast_to(np.arange(1, len(tokens) + 1)[:, None], kept.shape)
    row = [np.append(each[kept], [0] * 5)[None] for each in (inputs, numbers, targets, weights)]
    return *(each.astype(np.int32) for each in row[:3]), row[3].astype(bool)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [*((name, padded) for name in NAMES), *((name, packed) for name in ("qwen2", "qwen3-bias-yarn", "llama-mqa"))],
)
def test_log_probs_and_gradients(name, layout, checkpoint, batch, tmp_path):
    made, (tokens, mask) = checkpoint(name), batch
    _, graph, params = hugging_face.load(made.folder, dtype=jnp.float32)
    inputs, segments, targets, weights = map(jnp.asarray, layout(tokens, mask))

    def loss(params):
        hidden = models.hidden_states(graph, params, inputs, segment_ids=segments)
        log_probs, _ = models.token_log_probs(graph, params, hidden, targets, chunk_size=13)
        return -jnp.where(weights, log_probs, 0).sum() / weights.sum(), log_probs

    (_, log_probs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    ours = np.asarray(log_probs)[np.asarray(weights)]  # sequence by sequence in both layouts
    inputs, _, targets, weights = padded(tokens, mask)

    model = made.reference
    model.zero_grad()
    theirs = torch.log_softmax(reference_logits(model, inputs, mask[:, :-1]), -1)
    theirs = torch.gather(theirs, -1, torch.tensor(targets)[..., None])[..., 0]
    (-(theirs * torch.tensor(weights)).sum() / weights.sum()).backward()
    theirs = theirs.detach().numpy()[weights]
    assert (np.abs(ours - theirs) / np.abs(theirs)).max() < 1e-4

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


@pytest.mark.slow
def test_in_bfloat16_both_find_the_same_token_most_likely(checkpoint, batch):
    """Where it is not, two tokens are as good as equal; `tools/verify_hf.py --dtype=bfloat16` tells a user's share."""
    made, (tokens, mask) = checkpoint("qwen3-bias-yarn"), batch
    _, graph, params = hugging_face.load(made.folder, dtype=jnp.bfloat16)
    ours = np.asarray(our_logits(graph, params, tokens, mask.astype(np.int32)), np.float32)
    with torch.no_grad():
        theirs = reference_logits(copy.deepcopy(made.reference).bfloat16(), tokens, mask).float().numpy()
    same = (ours.argmax(-1) == theirs.argmax(-1))[mask]
    assert same.mean() > 0.9
