"""Advantages against plain loops in float64; float32 results agree to 1e-5."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.rl import advantages as estimators

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
    advantages, returns = jax.jit(estimators.gae)(rewards, values, mask, gamma, lam)
    assert advantages.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(advantages, expected[0], atol=1e-5)
    np.testing.assert_allclose(returns, expected[1], atol=1e-5)


def test_gae_with_lambda_1_makes_returns_the_reward_to_go():
    rng = np.random.default_rng(1)
    mask = masks(rng)
    rewards, values = rng.normal(size=(2, *mask.shape))
    _, returns = estimators.gae(jnp.array(rewards), jnp.array(values), jnp.array(mask), 1.0, 1.0)
    to_go = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_go, 0), atol=1e-5)


def test_the_last_action_token_is_terminal_even_where_values_follow_it():
    mask = jnp.array([[True, True, False]])
    rewards, values = jnp.array([[0.0, 1.0, 5.0]]), jnp.array([[0.25, 0.5, 100.0]])
    advantages, _ = estimators.gae(rewards, values, mask, 1.0, 0.0)
    np.testing.assert_allclose(advantages, [[0.25, 0.5, 0.0]])


def test_gae_does_not_truncate_fractional_rewards_of_low_precision_inputs():
    mask = jnp.ones((1, 2), bool)
    advantages, _ = estimators.gae(jnp.array([[0, 0.5]], jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16), mask, 1.0, 1.0)
    np.testing.assert_array_equal(advantages, [[0.5, 0.5]])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (1, 1)])
def test_gae_of_degenerate_shapes(shape):
    zeros = jnp.zeros(shape)
    advantages, returns = estimators.gae(zeros, zeros, jnp.zeros(shape, bool), 0.9, 0.9)
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
    np.testing.assert_allclose(estimators.whiten(jnp.array(advantages), jnp.array(mask)), [[0, 0]], atol=1e-3)


def groups_by_loop(name, rewards, groups, mask):
    """The estimators, one sequence at a time, from their definitions."""
    out = np.zeros(len(rewards))
    counted = [i for i in range(len(rewards)) if mask[i]]
    for i in counted:
        group = [rewards[j] for j in counted if groups[j] == groups[i]]
        mean = sum(group) / len(group)
        if name == "grpo":
            deviation = (sum((r - mean) ** 2 for r in group) / (len(group) - 1)) ** 0.5 if len(group) > 1 else 1.0
            out[i] = (rewards[i] - mean) / (deviation + 1e-4)
        elif name == "rloo":
            others = [rewards[j] for j in counted if groups[j] == groups[i] and j != i]
            out[i] = rewards[i] - sum(others) / len(others) if others else 0.0
        else:
            out[i] = rewards[i] - (mean if name == "reinforce_plus_plus_baseline" else 0.0)
    if name.startswith("reinforce") and counted:
        mean = sum(out[i] for i in counted) / len(counted)
        variance = sum((out[i] - mean) ** 2 for i in counted) / len(counted)
        for i in counted:
            out[i] = (out[i] - mean) / (variance + 1e-8) ** 0.5
    return out


@pytest.mark.parametrize("name", sorted(estimators.GROUP_ESTIMATORS))
def test_group_estimators_match_their_definitions(name):
    rng = np.random.default_rng(3)
    groups = np.array([7, -2, 7, 1000003, -2, 7, -2, 7])  # any ids, any order, one group of a single sequence
    mask = np.array([1, 1, 1, 1, 1, 0, 1, 1], bool)
    rewards = rng.normal(size=8)
    actual = jax.jit(estimators.group_advantages, static_argnums=0)(name, np.where(mask, rewards, np.nan), groups, mask)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, groups_by_loop(name, rewards, groups, mask), atol=1e-5)


@pytest.mark.parametrize("name", sorted(estimators.GROUP_ESTIMATORS))
@pytest.mark.parametrize("counted", [True, False])
def test_equal_rewards_and_empty_batches_teach_nothing(name, counted):
    rewards = jnp.full(4, 0.3)
    actual = estimators.group_advantages(name, rewards, jnp.array([0, 0, 0, 1]), jnp.full(4, counted))
    np.testing.assert_allclose(actual, np.zeros(4), atol=1e-3)


def test_an_unknown_estimator_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'grop'.*grpo"):
        estimators.group_advantages("grop", jnp.zeros(1), jnp.zeros(1, int), jnp.ones(1, bool))


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
    added = jax.jit(estimators.best_of, static_argnums=3)(rewards, groups, mask, k)
    np.testing.assert_allclose(added, expected, atol=1e-6)


def test_best_of_estimates_the_gradient_of_the_expected_maximum():
    # A policy over three actions; the gradient of E[max of 2] by its logits, exactly and by the estimate.
    logits, worth, k, n = np.array([0.3, -0.2, 0.1]), np.array([0.2, 0.5, 1.0]), 2, 4
    probs = np.exp(logits) / np.exp(logits).sum()

    def expected_max(probs):
        return sum(
            np.prod(probs[list(draw)]) * worth[list(draw)].max() for draw in itertools.product(range(3), repeat=k)
        )

    step = 1e-5
    exact = np.zeros(3)
    for i in range(3):
        moved = np.exp(logits + step * np.eye(3)[i])
        exact[i] = (expected_max(moved / moved.sum()) - expected_max(probs)) / step
    estimate = np.zeros(3)
    for draw in itertools.product(range(3), repeat=n):
        draw = np.array(draw)
        added = np.asarray(estimators.best_of(worth[draw], np.zeros(n, int), np.ones(n, bool), k))
        scores = np.eye(3)[draw] - probs  # of log softmax
        estimate += np.prod(probs[draw]) * k / n * added @ scores
    np.testing.assert_allclose(estimate, exact, atol=1e-4)


def test_best_of_fewer_than_one_is_refused():
    with pytest.raises(ValueError, match="k is 0"):
        estimators.best_of(jnp.ones(2), jnp.zeros(2, int), jnp.ones(2, bool), 0)
