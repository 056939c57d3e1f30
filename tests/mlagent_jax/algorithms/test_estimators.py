"""Advantages against plain loops in float64; float32 results agree to 1e-5."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments.registry import RegistryError
from mlagent_jax.algorithms import estimators
from mlagent_jax.algorithms.estimators import Rewards
from mlagent_jax.algorithms.max_at_k import best_of

BATCH, TIME = 5, 9


def masks(rng):
    """Rows of every kind: left- and right-padded, with holes, full, of one token, empty."""
    mask = np.zeros((6, TIME), bool)
    mask[0, 4:] = True
    mask[1, :3] = True
    mask[2] = rng.random(TIME) < 0.5
    mask[3] = True
    mask[4, 6] = True
    return mask


def gae_by_loop(rewards, values, mask, gamma, lam):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(len(rewards)):
        steps = [t for t in range(rewards.shape[1]) if mask[row, t]]
        for i, t in enumerate(steps):
            # The definition, not the recursion: a discounted sum of temporal differences.
            for k, u in enumerate(steps[i:]):
                following = steps[i + k + 1] if i + k + 1 < len(steps) else None
                next_value = values[row, following] if following is not None else 0.0
                advantages[row, t] += (gamma * lam) ** k * (rewards[row, u] + gamma * next_value - values[row, u])
            returns[row, t] = advantages[row, t] + values[row, t]
    return advantages, returns


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8), (0.5, 0.0)])
def test_gae_is_the_sum_of_discounted_temporal_differences_over_action_tokens(gamma, lam):
    rng = np.random.default_rng(0)
    mask = masks(rng)
    rewards, values = rng.normal(size=(2, *mask.shape))
    expected = gae_by_loop(rewards, values, mask, gamma, lam)
    # What lies outside the mask must not matter, whatever it is.
    rewards, values = np.where(mask, rewards, np.nan), np.where(mask, values, np.inf)
    advantages, returns = jax.jit(estimators.gae_advantages)(rewards, values, mask, gamma, lam)
    assert advantages.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(advantages, expected[0], atol=1e-5)
    np.testing.assert_allclose(returns, expected[1], atol=1e-5)


def test_gae_with_lambda_1_makes_returns_the_reward_to_go():
    rng = np.random.default_rng(1)
    mask = masks(rng)
    rewards, values = rng.normal(size=(2, *mask.shape))
    _, returns = estimators.gae_advantages(jnp.array(rewards), jnp.array(values), jnp.array(mask), 1.0, 1.0)
    to_go = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_go, 0), atol=1e-5)


def test_the_last_action_token_is_terminal_even_where_values_follow_it():
    mask = jnp.array([[True, True, False]])
    rewards, values = jnp.array([[0.0, 1.0, 5.0]]), jnp.array([[0.25, 0.5, 100.0]])
    advantages, _ = estimators.gae_advantages(rewards, values, mask, 1.0, 0.0)
    np.testing.assert_allclose(advantages, [[0.25, 0.5, 0.0]])


def test_gae_does_not_truncate_fractional_rewards_of_low_precision_inputs():
    mask = jnp.ones((1, 2), bool)
    advantages, _ = estimators.gae_advantages(
        jnp.array([[0, 0.5]], jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16), mask, 1.0, 1.0
    )
    np.testing.assert_array_equal(advantages, [[0.5, 0.5]])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (1, 1)])
def test_gae_of_degenerate_shapes(shape):
    zeros = jnp.zeros(shape)
    advantages, returns = estimators.gae_advantages(zeros, zeros, jnp.zeros(shape, bool), 0.9, 0.9)
    np.testing.assert_array_equal(advantages, np.zeros(shape))
    np.testing.assert_array_equal(returns, np.zeros(shape))


def test_a_reward_is_placed_on_the_last_action_token_of_its_row():
    mask = np.array([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    placed = estimators.place_on_last(jnp.array([0.5, -1.0, np.nan, 2.0]), jnp.array(mask))
    np.testing.assert_array_equal(placed, [[0, 0, 0.5, 0], [0, 0, 0, -1], [0, 0, 0, 0], [2, 0, 0, 0]])


def test_whitening_is_over_all_masked_entries_of_the_batch():
    rng = np.random.default_rng(2)
    mask = masks(rng)
    advantages = 3.0 + 10.0 * rng.normal(size=mask.shape)
    whitened = np.asarray(estimators.whiten(jnp.array(np.where(mask, advantages, np.nan)), jnp.array(mask)))
    chosen = [advantages[i, t] for i in range(len(mask)) for t in range(TIME) if mask[i, t]]
    mean = sum(chosen) / len(chosen)
    deviation = (sum((a - mean) ** 2 for a in chosen) / len(chosen)) ** 0.5
    np.testing.assert_allclose(whitened, np.where(mask, (advantages - mean) / deviation, 0.0), atol=1e-5)


@pytest.mark.parametrize(
    ("advantages", "mask"),
    [([[1.0, 2.0]], [[False, False]]), ([[7.0, np.nan]], [[True, False]]), ([[0.1, 0.1]], [[True, True]])],
    ids=["empty mask", "one entry", "equal entries"],
)
def test_whitening_without_variance_gives_0(advantages, mask):
    np.testing.assert_array_equal(estimators.whiten(jnp.array(advantages), jnp.array(mask)), [[0, 0]])


def rows_of(rewards, groups, mask=None, lengths=None, baselines=None, added=None):
    """A batch of actions of so many tokens, 2 unless said otherwise, with a critic that says nothing."""
    rewards = np.asarray(rewards, np.float32)
    counted = np.ones(len(rewards), bool) if mask is None else np.asarray(mask)
    lengths = np.full(len(rewards), 2) if lengths is None else np.asarray(lengths)
    tokens = (np.arange(lengths.max()) < lengths[:, None]) & counted[:, None]
    zeros = np.zeros(len(rewards), np.float32)
    return Rewards(
        rewards=jnp.asarray(rewards),
        added=jnp.asarray(zeros if added is None else added),
        token_rewards=estimators.place_on_last(jnp.asarray(rewards), jnp.asarray(tokens)),
        values=jnp.zeros(tokens.shape),
        mask=jnp.asarray(tokens),
        groups=jnp.asarray(groups),
        baselines=jnp.asarray(zeros if baselines is None else np.asarray(baselines, np.float32)),
    )


def by_row(name, batch, normalisation="none"):
    """Advantage of each row; all of its tokens have the same."""
    advantages, returns = jax.jit(estimators.ESTIMATORS.choose(name))(batch)
    assert returns is None
    assert advantages.dtype == jnp.float32
    advantages = np.asarray(estimators.normalise(advantages, batch, normalisation))
    mask = np.asarray(batch.mask)
    found = [row[m] if m.any() else np.zeros(1) for row, m in zip(advantages, mask, strict=True)]
    assert all(np.ptp(row) == 0 for row in found) and not np.any(advantages[~mask])
    return np.asarray([row[0] for row in found])


LENGTHS = np.array([1, 4, 3, 2, 2, 5, 4, 1])
BASELINES = np.linspace(-1, 1, 8)


def advantage_by_loop(name, rewards, groups, mask, normalisation):
    """The estimators, one sequence at a time, from their definitions."""
    out = np.zeros(len(rewards))
    counted = [i for i in range(len(rewards)) if mask[i]]
    for i in counted:
        group = [j for j in counted if groups[j] == groups[i]]
        others = [j for j in group if j != i]
        mean = sum(rewards[j] for j in group) / len(group)
        baseline = {
            "grpo": mean,
            "reinforce_plus_plus_baseline": mean,
            "reinforce_plus_plus": 0.0,
            "single_stream": BASELINES[i],
        }.get(name)
        if baseline is None:
            weigh = (lambda j: LENGTHS[j]) if name == "opo" else (lambda j: 1)
            total = sum(weigh(j) for j in others)
            baseline = sum(weigh(j) * rewards[j] for j in others) / total if others else rewards[i]
        out[i] = rewards[i] - baseline
        if normalisation == "group" and others:
            deviation = (sum((rewards[j] - mean) ** 2 for j in group) / (len(group) - 1)) ** 0.5
            out[i] /= deviation + 1e-4
    if normalisation == "batch":  # every token counts
        tokens = [out[i] for i in counted for _ in range(LENGTHS[i])]
        out = np.where(mask, (out - np.mean(tokens)) / (np.var(tokens) + 1e-8) ** 0.5, 0.0)
    return out


NAMES = sorted(set(estimators.ESTIMATORS.names()) - {"gae"})


@pytest.mark.parametrize("normalisation", estimators.NORMALISATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_estimators_match_their_definitions(name, normalisation):
    rng = np.random.default_rng(3)
    groups = np.array([7, -2, 7, 1000003, -2, 7, -2, 7])  # any ids, any order, one group of a single sequence
    mask = np.array([1, 1, 1, 1, 1, 0, 1, 1], bool)
    rewards = rng.normal(size=8)
    batch = rows_of(np.where(mask, rewards, np.nan), groups, mask, LENGTHS, BASELINES)
    found = by_row(name, batch, normalisation)
    np.testing.assert_allclose(found, advantage_by_loop(name, rewards, groups, mask, normalisation), atol=1e-5)


@pytest.mark.parametrize("normalisation", ["none", "group", "batch"])
@pytest.mark.parametrize("name", ["grpo", "rloo", "opo", "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("size", [2, 3, 5, 6, 7])
def test_tied_groups_say_exactly_nothing(name, normalisation, size):
    """Not rounding noise, which a division by its own spread would scale to 1."""
    batch = rows_of([0.3] * size + [0.7] * size, [0] * size + [1] * size, lengths=range(1, 2 * size + 1))
    np.testing.assert_array_equal(by_row(name, batch, normalisation), np.zeros(2 * size))


def test_a_tied_group_stays_silent_beside_one_that_speaks():
    batch = rows_of([0.3] * 3 + [0.2, 0.9, 0.4], [0] * 3 + [1] * 3)
    for normalisation in ("none", "group"):
        advantages = by_row("grpo", batch, normalisation)
        np.testing.assert_array_equal(advantages[:3], np.zeros(3))
        assert np.abs(advantages[3:]).min() > 0.05


@pytest.mark.parametrize("name", [*NAMES, "gae"])
def test_a_batch_in_which_nothing_counts_gives_0(name):
    batch = rows_of([0.3] * 4, [0, 0, 0, 1], mask=[False] * 4)
    advantages, _ = estimators.ESTIMATORS.choose(name)(batch)
    for normalisation in estimators.NORMALISATIONS:
        np.testing.assert_array_equal(estimators.normalise(advantages, batch, normalisation), np.zeros((4, 2)))


def test_a_critic_has_a_lambda_of_its_own():
    rng = np.random.default_rng(4)
    mask = masks(rng)
    token_rewards, values = rng.normal(size=(2, *mask.shape)).astype(np.float32)
    batch = dataclasses.replace(
        rows_of(np.zeros(6), np.arange(6)),
        token_rewards=jnp.asarray(token_rewards),
        values=jnp.asarray(values),
        mask=jnp.asarray(mask),
    )
    advantages, returns = estimators.ESTIMATORS.choose("gae:gamma=0.9,lam=0.8,critic_lam=1")(batch)
    np.testing.assert_allclose(advantages, gae_by_loop(token_rewards, values, mask, 0.9, 0.8)[0], atol=1e-5)
    np.testing.assert_allclose(returns, gae_by_loop(token_rewards, values, mask, 0.9, 1.0)[1], atol=1e-5)
    # VAPO: lambda = 1 - 1 / (alpha * length), of each action's own length.
    advantages, returns = estimators.ESTIMATORS.choose("gae:length_alpha=0.5")(batch)
    for row in range(len(mask)):
        lam = max(0.0, 1 - 1 / (0.5 * max(1, mask[row].sum())))
        one = slice(row, row + 1)
        wanted, _ = gae_by_loop(token_rewards[one], values[one], mask[one], 1.0, lam)
        np.testing.assert_allclose(advantages[one], wanted, atol=1e-5)
    np.testing.assert_allclose(returns, gae_by_loop(token_rewards, values, mask, 1.0, 1.0)[1], atol=1e-5)


def test_an_unknown_estimator_is_refused_by_name():
    with pytest.raises(RegistryError, match=r"advantage estimator is 'grop'; choose one of gae, grpo.*'grpo'"):
        estimators.ESTIMATORS.choose("grop")


def best_of_by_subsets(rewards, groups, k):
    added = np.zeros(len(rewards))
    for i, group in enumerate(groups):
        others = [rewards[j] for j in range(len(rewards)) if groups[j] == group and j != i]
        subsets = list(itertools.combinations(others, min(k - 1, len(others))))
        added[i] = np.mean([max(*subset, rewards[i]) - max(subset) if subset else rewards[i] for subset in subsets])
    return added


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_best_of_is_the_mean_of_what_an_action_adds_over_all_subsets(k):
    rng = np.random.default_rng(k)
    groups = np.array([3, 0, 3, 3, 0, 7, 3, 0, 3])
    rewards = rng.choice([0.0, 0.15, 0.4, 0.7, 0.9], size=len(groups))  # with ties
    mask = np.ones(len(groups), bool)
    mask[2] = False
    expected = np.zeros(len(groups))
    expected[mask] = best_of_by_subsets(rewards[mask], groups[mask], k)
    rewards[2] = np.nan
    added = jax.jit(best_of, static_argnums=3)(rewards, groups, mask, k)
    np.testing.assert_allclose(added, expected, atol=1e-6)


def test_best_of_fewer_than_one_is_refused():
    with pytest.raises(ValueError, match="k is 0"):
        best_of(jnp.ones(2), jnp.zeros(2, int), jnp.ones(2, bool), 0)
