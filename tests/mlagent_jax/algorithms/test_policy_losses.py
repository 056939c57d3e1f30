"""Policy losses against plain loops in float64, value and gradient; float32 results agree to 1e-5 relative."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments.registry import RegistryError
from mlagent_jax.algorithms.means import AGGREGATIONS, aggregate
from mlagent_jax.algorithms.policy_losses import POLICY_LOSSES, policy_loss

from .conftest import SHAPE, mean_by_loop


def ratio(log_probs, batch, i, t):
    return math.exp(log_probs[i, t] - batch["old_log_probs"][i, t])


def ppo_clip_by_loop(log_probs, batch, i, t, low=0.2, high=0.3, dual=0.0):
    rho, advantage = ratio(log_probs, batch, i, t), batch["advantages"][i, t]
    objective = min(rho * advantage, min(max(rho, 1 - low), 1 + high) * advantage)
    return max(objective, dual * advantage) if dual and advantage < 0 else objective


def gspo_by_loop(log_probs, batch, i, t, low=0.1, high=0.2):
    """The value; GSPO's own, which does not depend on t where an action's tokens share an advantage."""
    places = [u for u in range(SHAPE[1]) if batch["mask"][i, u]]
    s = math.exp(sum(log_probs[i, u] - batch["old_log_probs"][i, u] for u in places) / len(places))
    advantage = batch["advantages"][i, t]
    return min(s * advantage, min(max(s, 1 - low), 1 + high) * advantage)


def cispo_by_loop(log_probs, batch, i, t, low=0.4, high=0.5):
    weight = min(max(math.exp(batch["log_probs"][i, t] - batch["old_log_probs"][i, t]), 1 - low), 1 + high)
    return weight * batch["advantages"][i, t] * log_probs[i, t]  # the weight is of the parameters that are held


def dppo_by_loop(log_probs, batch, i, t, divergence="tv", limit=0.15, cap=2.0):
    rho, advantage = ratio(log_probs, batch, i, t), batch["advantages"][i, t]
    p, q = math.exp(batch["old_log_probs"][i, t]), math.exp(batch["log_probs"][i, t])
    distance = abs(p - q)
    if divergence == "kl":
        distance = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    if distance > limit and (rho > 1 if advantage > 0 else rho < 1):
        return 0.0
    return min(rho, cap) * advantage


def sapo_by_loop(log_probs, batch, i, t, positive=1.0, negative=1.05):
    rho, advantage = ratio(log_probs, batch, i, t), batch["advantages"][i, t]
    temperature = positive if advantage > 0 else negative
    return 4 / temperature / (1 + math.exp(-temperature * (rho - 1))) * advantage


REFERENCES = {
    "ppo_clip:low=0.2,high=0.3": ppo_clip_by_loop,
    "ppo_clip:low=0.2,high=0.3,dual=1.5": lambda *args: ppo_clip_by_loop(*args, dual=1.5),
    "gspo:low=0.1,high=0.2": gspo_by_loop,
    "cispo:low=0.4,high=0.5": cispo_by_loop,
    "dppo:cap=2": dppo_by_loop,
    "dppo:divergence=kl,limit=0.3,cap=2": lambda *args: dppo_by_loop(*args, divergence="kl", limit=0.3),
    "sapo": sapo_by_loop,
}


def loss_of(choice, log_probs, batch, **options):
    arguments = [jnp.asarray(batch[name]) for name in ("old_log_probs", "advantages", "mask")]
    return policy_loss(POLICY_LOSSES.choose(choice), log_probs, *arguments, **options)


def by_sequence(batch):
    """The same with one advantage an action, as GSPO is published."""
    rows = np.nanmean(np.where(batch["mask"].any(axis=1, keepdims=True), batch["advantages"], 0.0), axis=1)
    return batch | {"advantages": np.where(batch["mask"], rows[:, None], np.nan)}


def test_every_loss_has_a_reference():
    assert {choice.partition(":")[0] for choice in REFERENCES} == set(POLICY_LOSSES.names())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("choice", REFERENCES)
def test_a_loss_is_the_weighted_mean_of_its_definition(batch, choice, aggregation):
    weights = np.random.default_rng(5).uniform(0, 2, SHAPE)
    loss, metrics = loss_of(
        choice, jnp.asarray(batch["log_probs"]), batch, weights=jnp.asarray(weights), aggregation=aggregation
    )

    def token(i, t):
        return -weights[i, t] * REFERENCES[choice](batch["log_probs"], batch, i, t)

    np.testing.assert_allclose(loss.value, mean_by_loop(token, batch["mask"], aggregation), rtol=2e-5)
    assert all(np.isfinite(metric.value) for metric in metrics.values())
    if "clip_fraction" in metrics:
        assert 0 < metrics["clip_fraction"].value < 1, "the batch meets the bounds"


@pytest.mark.parametrize("choice", REFERENCES)
def test_the_gradient_is_that_of_finite_differences(batch, choice):
    batch = by_sequence(batch) if choice.startswith("gspo") else batch
    gradient = np.asarray(
        jax.grad(lambda lp: loss_of(choice, lp, batch, aggregation="sequence")[0].value)(
            jnp.asarray(batch["log_probs"])
        )
    )
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~batch["mask"]])
    for i, t in np.argwhere(batch["mask"])[::2]:
        ends = []
        for step in (1e-5, -1e-5):
            moved = batch["log_probs"].copy()
            moved[i, t] += step
            ends.append(mean_by_loop(lambda i, t: -REFERENCES[choice](moved, batch, i, t), batch["mask"], "sequence"))  # noqa: B023
        np.testing.assert_allclose(gradient[i, t], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("choice", REFERENCES)
def test_equal_policies_have_ratio_1_and_the_gradient_of_the_policy_gradient_theorem(batch, choice):
    old, mask = jnp.asarray(batch["old_log_probs"]), batch["mask"]
    gradient, metrics = jax.grad(
        lambda lp: (lambda loss, metrics: (loss.total, metrics))(*loss_of(choice, lp, batch)), has_aux=True
    )(old)
    np.testing.assert_allclose(gradient, np.where(mask, -batch["advantages"], 0.0), rtol=1e-5)
    assert metrics["log_ratio_abs"].total == 0 and metrics["kl_old"].value == 0 and metrics["ratio"].value == 1


@pytest.mark.parametrize("choice", REFERENCES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(("log_prob", "old"), [(0.0, -500.0), (-500.0, 0.0)])
def test_a_ratio_that_overflows_gives_finite_values_and_gradients(choice, advantage, log_prob, old):
    one = jnp.ones((1, 1))
    batch = {"old_log_probs": old * one, "advantages": advantage * one, "mask": one > 0}
    value, gradient = jax.value_and_grad(lambda lp: loss_of(choice, lp, batch)[0].total)(log_prob * one)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_the_fraction_that_is_clipped_counts_the_tokens_without_gradient(batch):
    for choice in ("ppo_clip", "gspo:low=0.1,high=0.2", "dppo:cap=0"):
        log_probs = jnp.asarray(batch["log_probs"])
        gradient = jax.grad(lambda lp: loss_of(choice, lp, batch)[0].total)(log_probs)  # noqa: B023
        without = np.sum(batch["mask"] & (np.asarray(gradient) == 0))
        assert loss_of(choice, log_probs, batch)[1]["clip_fraction"].total == without


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_accumulate_to_the_whole_batch(batch, aggregation):
    def terms(rows):
        part = {name: array[rows] for name, array in batch.items()}
        loss, metrics = loss_of("ppo_clip", jnp.asarray(part["log_probs"]), part, aggregation=aggregation)
        return {"policy": loss, **metrics}

    whole = terms(slice(None))
    parts = [terms(rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    for name, expected in whole.items():
        summed = parts[0][name] + parts[1][name] + parts[2][name]
        np.testing.assert_allclose(summed.count, expected.count)
        np.testing.assert_allclose(summed.value, expected.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", REFERENCES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_mask_gives_0_and_no_gradient(choice, aggregation):
    garbage = jnp.full((2, 3), jnp.nan)
    batch = {"old_log_probs": garbage, "advantages": garbage, "mask": jnp.zeros((2, 3), bool)}
    value, gradient = jax.value_and_grad(lambda lp: loss_of(choice, lp, batch, aggregation=aggregation)[0].value)(
        garbage
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_unknown_names_are_refused_with_those_that_there_are():
    ones = jnp.ones((1, 1))
    with pytest.raises(ValueError, match=r"'mean'.*token, sequence, constant"):
        aggregate(ones, ones, "mean")
    with pytest.raises(RegistryError, match=r"policy loss is 'gspoo'.*cispo, dppo, gspo.*Did you mean 'gspo'"):
        POLICY_LOSSES.choose("gspoo")
    with pytest.raises(RegistryError, match="policy loss gspo has no parameter 'dual'; its parameters are low, high"):
        POLICY_LOSSES.choose("gspo:dual=3")
    with pytest.raises(RegistryError, match=r"low is 2\.0; it must be above 0 and at most 1"):
        POLICY_LOSSES.choose("ppo_clip:low=2")
