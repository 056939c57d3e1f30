"""The draws follow the distribution that the returned log-probabilities state, and that is the one asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mlagent_jax.sampling import Distribution
from mlagent_jax.sampling.distribution import Distributions, draw, log_distribution, request_keys

LOGITS = np.random.default_rng(0).normal(0, 1.5, 24).astype(np.float32)
CASES = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.15},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
]


def reference(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """What transformers' processors make of the logits."""
    import torch

    scores = torch.tensor(LOGITS)[None]
    processors = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [MinPLogitsWarper(min_p)] if min_p else []
    for process in processors:
        scores = process(None, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


def check(settings, expected):
    np.testing.assert_allclose(np.exp(log_distribution(settings, jnp.asarray(LOGITS)[None])[0]), expected, atol=1e-6)
    count = 20_000
    zeros = jnp.zeros((count,), jnp.uint32)
    logits = jnp.broadcast_to(LOGITS, (count, len(LOGITS)))
    keys = jax.jit(request_keys)(jnp.arange(count, dtype=jnp.uint32), zeros, zeros)
    if isinstance(settings, Distribution):
        drawing = jax.jit(draw, static_argnums=0)
    else:
        drawing, settings = jax.jit(draw), jax.tree.map(lambda row: jnp.broadcast_to(row, (count,)), settings)
    tokens, log_probs = drawing(settings, logits, keys, jnp.full((count,), 7))
    seen = np.bincount(tokens, minlength=len(LOGITS))
    assert not seen[expected == 0].any()
    likely = expected * count >= 5
    observed, wanted = [np.append(x[likely], x[~likely].sum()) for x in (seen, expected * count)]
    kept = wanted > 0
    assert stats.chisquare(observed[kept], wanted[kept] * observed.sum() / wanted.sum()).pvalue > 1e-3
    np.testing.assert_allclose(log_probs, np.log(expected[np.asarray(tokens)]), atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_and_log_probs_follow_the_reference(case):
    check(Distribution(**case), reference(**case))
    check(Distributions.same(Distribution(**case), 1), reference(**case))


@pytest.mark.slow
def test_each_row_of_a_batch_has_a_distribution_of_its_own():
    cases = [*map(lambda case: Distribution(**case), CASES), Distribution(0)]
    each = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(Distributions.same(case, 1) for case in cases))
    together = jax.jit(log_distribution)(each, jnp.broadcast_to(LOGITS, (len(cases), len(LOGITS))))
    for row, case in zip(together, CASES, strict=False):
        np.testing.assert_allclose(np.exp(row), reference(**case), atol=1e-6)
    uncut = jax.jit(log_distribution)(Distributions.same(cases[0], 1), jnp.asarray(LOGITS)[None])[0]
    np.testing.assert_array_equal(together[0], uncut, "what others cut does not touch a row")
    keys = request_keys(*jnp.zeros((3, len(cases)), jnp.uint32))
    tokens, _ = jax.jit(draw)(each, jnp.broadcast_to(LOGITS, together.shape), keys, jnp.zeros((len(cases),), jnp.int32))
    assert tokens[-1] == LOGITS.argmax()


@pytest.mark.parametrize("settings", [Distribution(0), Distributions.same(Distribution(0, top_p=0.5), 1)], ids=type)
def test_temperature_0_is_greedy_with_the_log_prob_at_temperature_1(settings):
    keys = request_keys(*jnp.zeros((3, 1), jnp.uint32))
    tokens, log_probs = draw(settings, jnp.asarray(LOGITS)[None], keys, jnp.zeros((1,), jnp.int32))
    assert tokens[0] == LOGITS.argmax()
    np.testing.assert_allclose(log_probs[0], jax.nn.log_softmax(LOGITS).max(), atol=1e-6)


def test_seed_sample_and_position_each_change_the_draw():
    seeds = jnp.asarray([5, 5, 5, 6, 5], jnp.uint32)
    high = jnp.asarray([0, 0, 0, 0, 1], jnp.uint32)
    keys = request_keys(seeds, high, jnp.asarray([0, 0, 1, 0, 0]))
    flat = jnp.zeros((5, 100_000))
    tokens, _ = draw(Distribution(), flat, keys, jnp.asarray([3, 3, 3, 3, 3]))
    moved, _ = draw(Distribution(), flat, keys, jnp.asarray([4, 4, 4, 4, 4]))
    assert tokens[0] == tokens[1]
    assert len({int(tokens[i]) for i in (0, 2, 3, 4)} | {int(moved[0])}) == 5
