"""Estimates of the KL, their gradients, and the controllers of its weight."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from environments.registry import RegistryError
from mlagent_jax.algorithms.kl import KL_CONTROLLERS, KL_KINDS, kl, token_kl


@pytest.mark.parametrize("kind", KL_KINDS)
def test_kl_matches_its_definition(batch, kind):
    log_probs, ref, mu, mask = (batch[n] for n in ("log_probs", "old_log_probs", "behaviour_log_probs", "mask"))
    estimate = partial(
        token_kl, ref_log_probs=jnp.asarray(ref), mask=jnp.asarray(mask), kind=kind, behaviour_log_probs=jnp.asarray(mu)
    )
    found = np.asarray(estimate(jnp.asarray(log_probs)))
    for i, t in np.argwhere(mask):
        d = log_probs[i, t] - ref[i, t]
        k3 = math.exp(-d) - 1 + d
        wanted = {"k1": d, "k2": d * d / 2, "k3": k3, "unbiased": math.exp(log_probs[i, t] - mu[i, t]) * k3}[kind]
        np.testing.assert_allclose(found[i, t], wanted, rtol=2e-5, atol=1e-6)
    gradient = np.asarray(jax.grad(lambda lp: jnp.sum(jnp.where(mask, estimate(lp), 0.0)))(jnp.asarray(log_probs)))
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~mask])


def expected_gradient(kind, logits, reference, behaviour):
    """By the logits, of the term in the loss, exactly: every token of the vocabulary weighed by its probability."""
    mu = jax.nn.log_softmax(behaviour)

    def term(logits):
        policy = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(mu) * kl(policy, jax.nn.log_softmax(reference), kind, mu))

    return jax.grad(term)(logits)


@pytest.mark.parametrize(
    ("kind", "on_policy", "divergence"),
    [
        ("k1", True, None),
        ("k2", True, "reverse"),
        ("k3", True, "forward"),
        ("unbiased", True, "reverse"),
        ("unbiased", False, "reverse"),
    ],
)
def test_the_expected_gradient_is_that_of_the_divergence_that_the_docstring_names(kind, on_policy, divergence):
    rng = np.random.default_rng(1)
    logits, reference, other = (jnp.asarray(rng.normal(size=11), jnp.float32) for _ in range(3))

    def exact(logits):
        p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
        return jnp.sum(jnp.exp(p) * (p - q)) if divergence == "reverse" else jnp.sum(jnp.exp(q) * (q - p))

    wanted = jax.grad(exact)(logits) if divergence else jnp.zeros(11)
    found = expected_gradient(kind, logits, reference, logits if on_policy else other)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_kl_estimators_agree_in_expectation_with_the_exact_divergence():
    rng = np.random.default_rng(1)
    policy, reference = (jax.nn.log_softmax(jnp.array(rng.normal(size=11))) for _ in range(2))
    exact = jnp.sum(jnp.exp(policy) * (policy - reference))
    for kind in ("k1", "k3", "unbiased"):
        np.testing.assert_allclose(jnp.sum(jnp.exp(policy) * kl(policy, reference, kind)), exact, rtol=1e-5)


def test_kl_of_nearly_equal_policies_keeps_its_digits():
    for difference in (1e-3, 1e-2):
        actual = kl(jnp.array([difference]), jnp.zeros(1), "k3")
        np.testing.assert_allclose(actual, [math.expm1(-difference) + difference], rtol=1e-2)


@pytest.mark.parametrize("difference", [-500.0, -25.0, -19.0, -1.0, 1.0, 25.0, 500.0])
def test_the_gradient_of_k3_points_to_the_reference_however_far_that_is(difference):
    value, slope = jax.value_and_grad(lambda x: kl(x, jnp.zeros(()), "k3"))(jnp.asarray(difference))
    assert np.isfinite(value) and np.isfinite(slope)
    assert np.sign(slope) == np.sign(difference)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match=r"'k4'.*k1, k2, k3"):
        kl(jnp.ones(1), jnp.ones(1), "k4")


def test_a_fixed_coefficient_stays():
    assert KL_CONTROLLERS.choose("fixed")(0.05, 123.0) == 0.05


@pytest.mark.parametrize(("observed", "error"), [(0.02, 0.0), (0.022, 0.1), (0.018, -0.1), (10.0, 0.2), (0.0, -0.2)])
def test_an_adaptive_coefficient_follows_the_relative_error_within_its_bound(observed, error):
    controller = KL_CONTROLLERS.choose("adaptive:target=0.02")
    assert controller(0.5, observed) == pytest.approx(0.5 * (1 + 0.1 * error))


@pytest.mark.parametrize("observed", [math.nan, math.inf])
def test_a_kl_that_is_no_number_is_refused(observed):
    with pytest.raises(ValueError, match="observed KL"):
        KL_CONTROLLERS.choose("adaptive:target=0.1")(0.1, observed)


def test_a_controller_needs_its_target():
    with pytest.raises(RegistryError, match="needs target: write adaptive:target=VALUE"):
        KL_CONTROLLERS.choose("adaptive")
    with pytest.raises(RegistryError, match=r"target is 0\.0; it must be above 0"):
        KL_CONTROLLERS.choose("adaptive:target=0")
