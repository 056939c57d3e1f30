"""The terms of the PPO loss against plain loops in float64; float32 results agree to 1e-5 relative."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.rl import losses

SHAPE = (6, 7)


@pytest.fixture
def batch():
    """Log-probs, advantages and a mask with an empty row, a row of one token and a hole; garbage outside the mask."""
    rng = np.random.default_rng(0)
    mask = rng.random(SHAPE) < 0.6
    mask[0] = False
    mask[1] = np.arange(SHAPE[1]) == 3
    arrays = {
        "log_probs": -rng.exponential(size=SHAPE),
        "old_log_probs": -rng.exponential(size=SHAPE),
        "behaviour_log_probs": -rng.exponential(size=SHAPE),
        "advantages": rng.normal(size=SHAPE),
    }
    return {name: np.where(mask, array, np.nan) for name, array in arrays.items()} | {"mask": mask}


def mean_by_loop(token, mask, aggregation):
    """Mean of token(i, t) over the mask, each row's own mean first under `sequence`."""
    rows = [[token(i, t) for t in range(SHAPE[1]) if mask[i, t]] for i in range(SHAPE[0])]
    if aggregation == "token":
        flat = [x for row in rows for x in row]
        return sum(flat) / len(flat)
    means = [sum(row) / len(row) for row in rows if row]
    return sum(means) / len(means)


def policy_loss_by_loop(batch, clip_low, clip_high, dual_clip, decoupled, max_weight, aggregation):
    def token(i, t):
        ratio = math.exp(batch["log_probs"][i, t] - batch["old_log_probs"][i, t])
        advantage = batch["advantages"][i, t]
        objective = min(ratio * advantage, min(max(ratio, 1 - clip_low), 1 + clip_high) * advantage)
        if dual_clip is not None and advantage < 0:
            objective = max(objective, dual_clip * advantage)
        if decoupled:
            objective *= min(math.exp(batch["old_log_probs"][i, t] - batch["behaviour_log_probs"][i, t]), max_weight)
        return -objective

    return mean_by_loop(token, batch["mask"], aggregation)


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("decoupled", [False, True])
def test_policy_loss_matches_its_definition(batch, aggregation, dual_clip, decoupled):
    loss, metrics = losses.ppo_policy_loss(
        *(jnp.array(batch[name]) for name in ("log_probs", "old_log_probs", "advantages", "mask")),
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=dual_clip,
        behaviour_log_probs=jnp.array(batch["behaviour_log_probs"]) if decoupled else None,
        max_importance_weight=1.25,
        aggregation=aggregation,
    )
    expected = policy_loss_by_loop(batch, 0.2, 0.3, dual_clip, decoupled, 1.25, aggregation)
    np.testing.assert_allclose(loss.value, expected, rtol=1e-5)
    assert all(np.isfinite(metric.value) for metric in metrics.values())
    assert 0 < metrics["clip_fraction"].value < 1
    if decoupled:
        assert 0 < metrics["truncated_fraction"].value < 1


def test_gradient_of_the_policy_loss_is_that_of_finite_differences(batch):
    def loss_of(log_probs):
        loss, _ = losses.ppo_policy_loss(
            log_probs,
            jnp.array(batch["old_log_probs"]),
            jnp.array(batch["advantages"]),
            jnp.array(batch["mask"]),
            clip_low=0.2,
            clip_high=0.2,
            dual_clip=3.0,
            behaviour_log_probs=jnp.array(batch["behaviour_log_probs"]),
        )
        return loss.value

    gradient = np.asarray(jax.grad(loss_of)(jnp.array(batch["log_probs"])))
    assert not np.any(gradient[~batch["mask"]])
    for i, t in np.argwhere(batch["mask"])[::3]:
        shifted = [{**batch, "log_probs": batch["log_probs"].copy()} for _ in range(2)]
        for sign, each in zip((1, -1), shifted, strict=True):
            each["log_probs"][i, t] += sign * 1e-5
        up, down = (policy_loss_by_loop(each, 0.2, 0.2, 3.0, True, 2.0, "token") for each in shifted)
        np.testing.assert_allclose(gradient[i, t], (up - down) / 2e-5, rtol=1e-4, atol=1e-7)


def test_equal_policies_have_ratio_1_and_the_gradient_of_the_policy_gradient_theorem(batch):
    old, advantages, mask = (jnp.array(batch[name]) for name in ("old_log_probs", "advantages", "mask"))

    def total(log_probs):
        loss, metrics = losses.ppo_policy_loss(
            log_probs, old, advantages, mask, clip_low=0.2, clip_high=0.2, behaviour_log_probs=old
        )
        return loss.total, metrics

    gradient, metrics = jax.grad(total, has_aux=True)(old)
    np.testing.assert_allclose(gradient, jnp.where(mask, -advantages, 0.0), rtol=1e-6)
    assert metrics["log_ratio_abs"].total == 0
    assert metrics["behaviour_gap"].total == 0
    assert metrics["ratio"].value == 1
    assert metrics["kl_old"].value == 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("log_prob", "old"), [(0.0, -500.0), (-500.0, 0.0)])
def test_a_ratio_that_overflows_gives_finite_values_and_gradients(advantage, log_prob, old):
    one = jnp.ones((1, 1))

    def total(log_probs):
        loss, _ = losses.ppo_policy_loss(
            log_probs, old * one, advantage * one, one > 0, clip_low=0.2, clip_high=0.2, behaviour_log_probs=one
        )
        return loss.total

    value, gradient = jax.value_and_grad(total)(log_prob * one)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_the_fraction_that_is_clipped_counts_the_tokens_without_gradient(batch):
    arguments = [jnp.array(batch[name]) for name in ("log_probs", "old_log_probs", "advantages", "mask")]
    loss = partial(losses.ppo_policy_loss, clip_low=0.2, clip_high=0.2)
    gradient = jax.grad(lambda lp: loss(lp, *arguments[1:])[0].total)(arguments[0])
    without = np.sum(batch["mask"] & (np.asarray(gradient) == 0))
    assert loss(*arguments)[1]["clip_fraction"].total == without


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_loss_matches_its_definition(batch, aggregation, clip):
    values, old, returns, mask = (batch[n] for n in ("log_probs", "old_log_probs", "advantages", "mask"))

    def token(i, t):
        error = (values[i, t] - returns[i, t]) ** 2
        if clip is not None:
            near = old[i, t] + min(max(values[i, t] - old[i, t], -clip), clip)
            error = max(error, (near - returns[i, t]) ** 2)
        return 0.5 * error

    arguments = [jnp.array(array) for array in (values, old, returns, mask)]
    loss, metrics = losses.value_loss(*arguments, clip=clip, aggregation=aggregation)
    np.testing.assert_allclose(loss.value, mean_by_loop(token, mask, aggregation), rtol=1e-5)
    gradient = jax.grad(lambda v: losses.value_loss(v, *arguments[1:], clip=clip)[0].value)(arguments[0])
    assert np.all(np.isfinite(gradient)) and not np.any(np.asarray(gradient)[~mask])
    expected = 1 - np.var((returns - old)[mask]) / np.var(returns[mask])
    np.testing.assert_allclose(losses.explained_variance(metrics), expected, rtol=1e-4)


def test_explained_variance_of_constant_returns_is_0():
    ones = jnp.full((2, 3), 0.1)
    _, metrics = losses.value_loss(ones, 3 * ones, ones, ones > 0, clip=None)
    assert losses.explained_variance(metrics) == 0.0


@pytest.mark.parametrize("kind", losses.KL_KINDS)
@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
def test_kl_matches_its_definition(batch, kind, aggregation):
    log_probs, ref, mask = (batch[name] for name in ("log_probs", "old_log_probs", "mask"))

    def token(i, t):
        d = log_probs[i, t] - ref[i, t]
        return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[kind]

    loss = partial(losses.kl_loss, ref_log_probs=jnp.array(ref), mask=jnp.array(mask), kind=kind)
    actual = loss(jnp.array(log_probs), aggregation=aggregation).value
    np.testing.assert_allclose(actual, mean_by_loop(token, mask, aggregation), rtol=1e-5)
    gradient = np.asarray(jax.grad(lambda lp: loss(lp).total)(jnp.array(log_probs)))
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~mask])


def test_kl_estimators_agree_in_expectation_with_the_exact_divergence():
    rng = np.random.default_rng(1)
    policy, reference = (jax.nn.log_softmax(jnp.array(rng.normal(size=11))) for _ in range(2))
    exact = jnp.sum(jnp.exp(policy) * (policy - reference))
    for kind in ("k1", "k3"):
        np.testing.assert_allclose(jnp.sum(jnp.exp(policy) * losses.kl(policy, reference, kind)), exact, rtol=1e-5)


def test_kl_of_nearly_equal_policies_keeps_its_digits():
    for difference in (1e-3, 1e-2):
        actual = losses.kl(jnp.array([difference]), jnp.zeros(1), "k3")
        np.testing.assert_allclose(actual, [math.expm1(-difference) + difference], rtol=1e-2)


def test_entropy_is_that_of_the_softmax():
    rng = np.random.default_rng(2)
    logits = 3 * rng.normal(size=(2, 3, 7))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [[-sum(p * math.log(p) for p in row) for row in rows] for rows in probabilities]
    np.testing.assert_allclose(losses.entropy(jnp.array(logits)), expected, rtol=1e-5)


def test_entropy_of_forbidden_tokens_is_finite_in_value_and_gradient():
    logits = jnp.array([0.0, 0.0, -jnp.inf])
    np.testing.assert_allclose(losses.entropy(logits), math.log(2), rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(losses.entropy)(logits)))


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
def test_micro_batches_accumulate_to_the_whole_batch(batch, aggregation):
    def terms(rows):
        log_probs, old, advantages, mask = (
            jnp.array(batch[name][rows]) for name in ("log_probs", "old_log_probs", "advantages", "mask")
        )
        policy, policy_metrics = losses.ppo_policy_loss(
            log_probs, old, advantages, mask, clip_low=0.2, clip_high=0.2, aggregation=aggregation
        )
        value, value_metrics = losses.value_loss(log_probs, old, advantages, mask, clip=0.2, aggregation=aggregation)
        return {"policy": policy, "value": value, **policy_metrics, **value_metrics}

    whole = terms(slice(None))
    parts = [terms(rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    for name, expected in whole.items():
        summed = parts[0][name] + parts[1][name] + parts[2][name]
        np.testing.assert_allclose(summed.count, expected.count)
        np.testing.assert_allclose(summed.value, expected.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
def test_an_empty_mask_gives_0_and_no_gradient(aggregation):
    garbage, empty = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)

    def total(x):
        policy, _ = losses.ppo_policy_loss(
            x, garbage, garbage, empty, clip_low=0.2, clip_high=0.2, behaviour_log_probs=garbage, dual_clip=3.0
        )
        value, _ = losses.value_loss(x, garbage, garbage, empty, clip=0.2, aggregation=aggregation)
        penalty = losses.kl_loss(x, garbage, empty, kind="k3", aggregation=aggregation)
        return policy.value + value.value + penalty.value

    value, gradient = jax.value_and_grad(total)(garbage)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_unknown_names_are_refused():
    ones = jnp.ones((1, 1))
    with pytest.raises(ValueError, match=r"'mean'.*token, sequence"):
        losses.aggregate(ones, ones, "mean")
    with pytest.raises(ValueError, match=r"'k4'.*k1, k2, k3"):
        losses.kl(ones, ones, "k4")
