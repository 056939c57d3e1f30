"""One SFT step says the same however its samples are laid out in rows and however these are cut into passes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlagent_jax import models
from mlagent_jax.models.packing import Sample, blocks, fill
from mlagent_jax.models.packing import packed as pack
from mlagent_jax.sft.step import sft_loss, sft_step

OPTIMIZER = optax.sgd(1.0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    lengths = [(int(rng.integers(1, 12)), int(rng.integers(1, 5))) for _ in range(11)]
    alone = [Sample(tuple(rng.integers(3, 32, p)), tuple(rng.integers(3, 32, a))) for p, a in lengths]
    # Three more actions of one prompt, which share it in a packed row.
    return alone + [Sample(alone[0].prompt, tuple(rng.integers(3, 32, a))) for a in (1, 4, 2)]


def losses_alone(graph, params, samples):
    """Negative log-likelihood of each sample by itself, a row each, from whole logits, in NumPy."""
    ids = [[*sample.prompt, *sample.action] for sample in samples]
    tokens = jnp.asarray([row + [0] * (16 - len(row)) for row in ids])  # causal: what follows changes nothing
    logits = np.asarray(models.logits(graph, params, models.hidden_states(graph, params, tokens)), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [
        -sum(log_probs[i, t - 1, row[t]] for t in range(len(sample.prompt), len(row)))
        for i, (row, sample) in enumerate(zip(ids, samples, strict=True))
    ]


@pytest.fixture(scope="module")
def packed(samples):
    """Four rows, the last ones padding alone."""
    found = blocks(samples, range(len(samples)), 48)
    assert len(found) == len(samples) - 3
    rows = pack(found, 48)
    assert len(rows) in (2, 3)
    return fill(samples, [*rows, *[[]] * (4 - len(rows))], 48, 0)


def step(policy, rows, micro_rows=0):
    graph, params = policy
    params = jax.tree.map(jnp.copy, params)  # donated
    return sft_step(
        params, OPTIMIZER.init(params), rows.arrays(), graph=graph, optimizer=OPTIMIZER, remat="none",
        compute_dtype="float32", micro_rows=micro_rows,
    )  # fmt: skip


def test_packed_and_padded_rows_have_the_loss_of_the_samples_by_themselves(policy, samples, packed):
    graph, params = policy
    wanted, count = sum(losses_alone(graph, params, samples)), sum(len(sample.action) for sample in samples)
    padded = fill(samples, [[block] for block in blocks(samples, range(len(samples)), 16, share=False)], 16, 0)
    total, counted = sft_loss(params, padded.arrays(), graph=graph, compute_dtype="float32")
    assert int(counted) == count
    np.testing.assert_allclose(float(total), wanted, rtol=1e-5)
    total, _ = sft_loss(params, padded.arrays(), graph=graph, compute_dtype="float32", single=True)
    np.testing.assert_allclose(float(total), wanted, rtol=1e-5)
    _, _, metrics = step(policy, packed)
    assert int(metrics["action_tokens"]) == count
    np.testing.assert_allclose(float(metrics["loss"]), wanted / count, rtol=1e-5)


def test_passes_over_parts_of_a_batch_take_the_same_step(policy, packed):
    """Rows have different numbers of action tokens, one has none: a mean of means would be another step."""
    whole, _, metrics = step(policy, packed)
    parts, _, of_parts = step(policy, packed, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), parts, whole)
    for name in ("loss", "grad_norm", "action_tokens", "tokens"):
        np.testing.assert_allclose(float(of_parts[name]), float(metrics[name]), rtol=1e-5)


@pytest.mark.parametrize("micro_rows", [0, 1])
def test_a_batch_without_any_action_token_is_no_nan_and_moves_nothing(policy, micro_rows):
    after, _, metrics = step(policy, fill([], [[]] * 4, 48, 0), micro_rows)
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == float(metrics["action_tokens"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after, policy[1])
