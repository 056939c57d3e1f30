"""Off-policy corrections against plain loops in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.algorithms.corrections import CORRECTIONS, correction_weights, effective_sample_share

from .conftest import SHAPE


def ratios(batch, i):
    """Of the tokens of an action, by place."""
    old, mu = batch["old_log_probs"], batch["behaviour_log_probs"]
    return {t: math.exp(old[i, t] - mu[i, t]) for t in range(SHAPE[1]) if batch["mask"][i, t]}


def geometric(batch, i):
    return math.prod(ratios(batch, i).values()) ** (1 / len(ratios(batch, i)))


REFERENCES = {
    "none": lambda batch, i, t: 1.0,
    "truncate_tokens:limit=1.25": lambda batch, i, t: min(ratios(batch, i)[t], 1.25),
    "truncate_sequences:limit=1.5": lambda batch, i, t: min(math.prod(ratios(batch, i).values()), 1.5),
    "mask_tokens:low=0.5,high=2": lambda batch, i, t: r if 0.5 <= (r := ratios(batch, i)[t]) <= 2 else 0.0,
    "mask_geometric:low=0.6,high=1.4": lambda batch, i, t: float(0.6 <= geometric(batch, i) <= 1.4),
    "mask_outliers:low=0.5": lambda batch, i, t: float(min(ratios(batch, i).values()) >= 0.5),
    "mask_outliers:low=0,high=2": lambda batch, i, t: float(max(ratios(batch, i).values()) <= 2),
}


def weights_of(batch, corrections):
    arrays = [jnp.asarray(batch[name]) for name in ("old_log_probs", "behaviour_log_probs", "mask")]
    return jax.jit(correction_weights, static_argnums=0)(corrections, *arrays)


def test_every_correction_has_a_reference():
    assert {choice.partition(":")[0] for choice in REFERENCES} == set(CORRECTIONS.names())


@pytest.mark.parametrize("choice", [*REFERENCES, "truncate_tokens:limit=1.25+mask_outliers:low=0.5"])
def test_weights_are_those_of_the_definition_and_several_multiply(batch, choice):
    weights, metrics = weights_of(batch, choice)
    found = [float(weights[i, t]) for i, t in np.argwhere(batch["mask"])]
    wanted = [
        math.prod(REFERENCES[part](batch, i, t) for part in choice.split("+")) for i, t in np.argwhere(batch["mask"])
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert "none" in choice or len(set(np.round(wanted, 6))) > 1, "the batch meets the bounds"
    np.testing.assert_allclose(metrics["importance_weight"].value, np.mean(wanted), rtol=1e-5)
    np.testing.assert_allclose(metrics["rejected_fraction"].value, np.mean(np.equal(wanted, 0)), rtol=1e-5)
    np.testing.assert_allclose(
        effective_sample_share(metrics), np.sum(wanted) ** 2 / len(wanted) / np.sum(np.square(wanted)), rtol=1e-4
    )


def test_the_samplers_distance_is_told_whatever_the_correction(batch):
    _, metrics = weights_of(batch, "none")
    gaps = [batch["old_log_probs"][i, t] - batch["behaviour_log_probs"][i, t] for i, t in np.argwhere(batch["mask"])]
    np.testing.assert_allclose(metrics["behaviour_gap"].value, np.mean(np.abs(gaps)), rtol=1e-5)
    np.testing.assert_allclose(metrics["behaviour_kl"].value, np.mean(np.expm1(gaps) - gaps), rtol=1e-5)


@pytest.mark.parametrize("choice", REFERENCES)
@pytest.mark.parametrize("gap", [500.0, -500.0])
def test_a_ratio_that_overflows_gives_finite_weights(choice, gap):
    one = jnp.ones((1, 1))
    weights, metrics = correction_weights(choice, gap * one, 0 * one, one > 0)
    assert np.all(np.isfinite(weights)) and all(np.isfinite(metric.value) for metric in metrics.values())


def test_truncated_sequence_weights_give_the_gradient_of_the_policy_that_did_not_sample():
    """By enumeration of actions of two tokens: the untruncated product is exact, the weight by token is not."""
    rng = np.random.default_rng(0)
    pi, mu, worth = rng.dirichlet(np.full(3, 5.0), 2), rng.dirichlet(np.full(3, 5.0), 2), rng.normal(size=(3, 3))

    def expected(corrections):
        places = [(a, b) for a in range(3) for b in range(3)]
        old, behaviour = (np.log([[p[0][a], p[1][b]] for a, b in places]) for p in (pi, mu))
        weights, _ = correction_weights(corrections, jnp.asarray(old), jnp.asarray(behaviour), jnp.ones((9, 2), bool))
        scores = np.asarray([np.eye(3)[a] - pi[0] for a, _ in places])  # of the first token's logits
        chances = np.asarray([mu[0][a] * mu[1][b] * worth[a, b] for a, b in places])
        return (chances * np.asarray(weights)[:, 0]) @ scores

    exact = sum(pi[0][a] * pi[1][b] * worth[a, b] * (np.eye(3)[a] - pi[0]) for a in range(3) for b in range(3))
    np.testing.assert_allclose(expected("truncate_sequences:limit=1000"), exact, atol=1e-6)
    assert np.abs(expected("truncate_tokens:limit=1000") - exact).max() > 1e-3
