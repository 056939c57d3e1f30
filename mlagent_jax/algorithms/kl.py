"""KL to the reference policy: estimates per token, the term in the loss, and the controllers of its coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from environments.registry import Range, Registry
from mlagent_jax.algorithms.means import MAX_LOG_RATIO, bounded_exp

KL_KINDS = ("k1", "k2", "k3", "unbiased")

KLController = Callable[[float, float], float]
"""(current coefficient, KL of the batch in nats per token) -> coefficient of the next batch."""

KL_CONTROLLERS: Registry[KLController] = Registry("KL controller", "mlagent_jax.kl_controllers")


def kl(
    log_probs: jax.Array, ref_log_probs: jax.Array, kind: str, behaviour_log_probs: jax.Array | None = None
) -> jax.Array:
    """Estimate KL(pi_theta || pi_ref) per token, from the chosen tokens alone.

        d = log pi_theta(a|s) - log pi_ref(a|s)
        k1 = d                          unbiased, high variance, may be negative
        k2 = 1/2 d^2                    biased, low variance
        k3 = exp(-d) - 1 + d            unbiased, low variance, never negative
        unbiased = rho * k3             rho = pi_theta / mu, with mu the behaviour policy

    The gradients behave differently. In the loss, with samples of pi_theta, they are:

        k1: 0 in expectation; k1 belongs in the reward, where it is exact
        k2: the gradient of KL(pi_theta || pi_ref)
        k3: the gradient of KL(pi_ref || pi_theta)
        unbiased: the gradient of KL(pi_theta || pi_ref), also with samples of mu

    Beyond |d| = 20, k3 continues along its tangent. exp(-d) overflows float32 there, and a clip would leave only the
    gradient of d, which points away from the reference.

    Sources: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html); Tang and Munos 2025, arXiv
    2506.09477 (gradients); DeepSeek-V3.2 2025, arXiv 2512.02556, section 3.1 (`unbiased`).

    Args:
      log_probs: [...] under pi_theta.
      ref_log_probs: [...] under the reference.
      kind: one of `KL_KINDS`.
      behaviour_log_probs: [...] under mu, for `unbiased`; None: mu is pi_theta.

    Returns:
      [...] float32.

    Raises:
      ValueError: there is no such kind.
    """
    log_probs = log_probs.astype(jnp.float32)
    difference = log_probs - ref_log_probs.astype(jnp.float32)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * jnp.square(difference)
    if kind not in KL_KINDS:
        raise ValueError(f"kl kind is {kind!r}; choose one of {', '.join(KL_KINDS)}")
    # expm1: exp(-d) - 1 loses every digit near d = 0, where a policy starts.
    k3 = jnp.expm1(jnp.clip(-difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)) + difference
    k3 = k3 + math.exp(MAX_LOG_RATIO) * jnp.maximum(-difference - MAX_LOG_RATIO, 0.0)
    if kind == "k3":
        return k3
    sampled = log_probs if behaviour_log_probs is None else behaviour_log_probs.astype(jnp.float32)
    return bounded_exp(log_probs - jax.lax.stop_gradient(sampled)) * k3


def token_kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    kind: str,
    behaviour_log_probs: jax.Array | None = None,
) -> jax.Array:
    """Compute `kl` [batch, time] under a mask, with a gradient for `log_probs` alone."""
    mask = mask.astype(bool)
    ref_log_probs = jnp.where(mask, jax.lax.stop_gradient(ref_log_probs), 0.0)
    if behaviour_log_probs is not None:
        behaviour_log_probs = jnp.where(mask, behaviour_log_probs, 0.0)
    return kl(jnp.where(mask, log_probs, 0.0), ref_log_probs, kind, behaviour_log_probs)


@KL_CONTROLLERS.register
def fixed(coefficient: float, observed: float) -> float:
    """Keep the coefficient constant."""
    del observed
    return coefficient


@KL_CONTROLLERS.register
def adaptive(
    coefficient: float,
    observed: float,
    *,
    target: Annotated[float, "Target KL in nats per token.", Range(0, open_low=True)],
    gain: Annotated[float, "K_beta of the paper.", Range(0, open_low=True)] = 0.1,
    max_error: Annotated[float, "Bound on the relative error.", Range(0, open_low=True)] = 0.2,
) -> float:
    """Proportional control in log space (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

        e    = clip((KL - target) / target, -max_error, max_error)
        beta = beta * (1 + gain * e)

    beta grows if the policy is too far from the reference and shrinks if it is too near, by at most gain * max_error
    per batch. A coefficient of 0 stays 0.

    Raises:
      ValueError: `observed` is not finite, which would make every later coefficient NaN.
    """
    if not math.isfinite(observed):
        raise ValueError(f"observed KL is {observed}: stop the run and look at the batch")
    error = min(max((observed - target) / target, -max_error), max_error)
    return coefficient * (1.0 + gain * error)
