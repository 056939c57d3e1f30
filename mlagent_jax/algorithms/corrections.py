"""Off-policy corrections by name: weights of tokens whose behaviour policy differs from the policy in training.

Sampler and trainer compute log-probs with different programs, and older parameters sampled a stale batch. With mu the
behaviour policy and pi_old the proximal one, a token's ratio is w_t = pi_old(a|s) / mu(a|s). A correction maps these
ratios to factors of the objective; several corrections, joined by `+`, multiply. A factor of 0 rejects a token, which
still counts in the denominator of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp

from environments.registry import Range, Registry
from mlagent_jax.algorithms.means import MAX_LOG_RATIO, Mean, Metrics, aggregate, bounded_exp, masked_difference

Correction = Callable[[jax.Array, jax.Array], jax.Array]
"""(log_ratios, mask), [batch, time] -> factors [batch, time]. Log-ratios are 0 outside the mask."""

CORRECTIONS: Registry[Correction] = Registry("off-policy correction", "mlagent_jax.corrections")


def correction_weights(
    corrections: str, old_log_probs: jax.Array, behaviour_log_probs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Multiply the factors of all `corrections`.

    Args:
      corrections: choices of `CORRECTIONS` joined by `+`, as in `truncate_tokens:limit=2+mask_outliers`; static.
      old_log_probs: [batch, time] of the chosen tokens under pi_old.
      behaviour_log_probs: [batch, time] under mu.
      mask: [batch, time], true on action tokens.

    Returns:
      (weights [batch, time] without gradient, metrics per token): `behaviour_gap` (mean of |log w|), `behaviour_kl` (k3
      estimate of KL(mu || pi_old)), `importance_weight`, `importance_weight_squared`, `truncated_fraction` (weights
      below w), `rejected_fraction` (weights of 0).

    Raises:
      RegistryError: there is no such correction or parameter.
    """
    mask = mask.astype(bool)
    gap = masked_difference(jax.lax.stop_gradient(old_log_probs), jax.lax.stop_gradient(behaviour_log_probs), mask)
    held = jnp.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = jnp.exp(held)
    weights = jnp.ones_like(ratio)
    for choice in corrections.split("+"):
        weights = weights * CORRECTIONS.choose(choice)(gap, mask)
    return weights, {
        "behaviour_gap": aggregate(jnp.abs(gap), mask),
        "behaviour_kl": aggregate(jnp.expm1(held) - held, mask),
        "importance_weight": aggregate(weights, mask),
        "importance_weight_squared": aggregate(jnp.square(weights), mask),
        "truncated_fraction": aggregate(weights < ratio, mask),
        "rejected_fraction": aggregate(weights == 0.0, mask),
    }


def effective_sample_share(metrics: Mapping[str, Mean]) -> float:
    """Return the effective sample size over the sample size, (sum w)^2 / (n * sum w^2); on the host.

    1: all weights are equal; 1/n: one token has all the weight; 0: all tokens are rejected.
    """
    mean, square = (float(metrics[name].value) for name in ("importance_weight", "importance_weight_squared"))
    return mean * mean / square if square > 0 else 0.0


def _sequence_sum(log_ratios: jax.Array) -> jax.Array:
    return jnp.sum(log_ratios, axis=1, keepdims=True)


@CORRECTIONS.register
def none(log_ratios: jax.Array, mask: jax.Array) -> jax.Array:
    """1: samples count as if the proximal policy had drawn them."""
    del mask
    return jnp.ones_like(log_ratios)


@CORRECTIONS.register
def truncate_tokens(
    log_ratios: jax.Array,
    mask: jax.Array,
    *,
    limit: Annotated[float, "Maximum weight.", Range(0, open_low=True)] = 5.0,
) -> jax.Array:
    """min(w_t, limit): truncated importance sampling by token.

    Sources: Espeholt et al. 2018, arXiv 1802.01561 (truncation); Yao et al. 2025, "Your Efficient RL Framework Secretly
    Brings You Off-Policy RL Training" (between sampler and trainer).
    """
    del mask
    return jnp.minimum(bounded_exp(log_ratios), limit)


@CORRECTIONS.register
def truncate_sequences(
    log_ratios: jax.Array,
    mask: jax.Array,
    *,
    limit: Annotated[float, "Maximum weight.", Range(0, open_low=True)] = 2.0,
) -> jax.Array:
    """min(prod_t w_t, limit): truncated importance sampling by action, unbiased except for the truncation.

    Source: Liu et al. 2025, "When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference
    Mismatch".
    """
    del mask
    return jnp.broadcast_to(jnp.minimum(bounded_exp(_sequence_sum(log_ratios)), limit), log_ratios.shape)


@CORRECTIONS.register
def mask_tokens(
    log_ratios: jax.Array,
    mask: jax.Array,
    *,
    low: Annotated[float, "Minimum ratio that counts.", Range(0)] = 0.5,
    high: Annotated[float, "Maximum ratio that counts.", Range(0, open_low=True)] = 5.0,
) -> jax.Array:
    """w_t within [low, high], else 0: IcePop (Ling Team 2025, "Every Step Evolves", arXiv 2510.18855)."""
    del mask
    ratio = bounded_exp(log_ratios)
    return jnp.where((ratio >= low) & (ratio <= high), ratio, 0.0)


@CORRECTIONS.register
def mask_geometric(
    log_ratios: jax.Array,
    mask: jax.Array,
    *,
    low: Annotated[float, "Minimum geometric mean that counts.", Range(0)] = 0.99,
    high: Annotated[float, "Maximum geometric mean that counts.", Range(0, open_low=True)] = 1.01,
) -> jax.Array:
    """1 for actions whose geometric mean of w_t is within [low, high], else 0 for all of their tokens.

    The geometric mean does not shrink with an action's length, as the product does. Source: as `truncate_sequences`.
    """
    lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    ratio = bounded_exp(_sequence_sum(log_ratios) / lengths)
    return jnp.broadcast_to((ratio >= low) & (ratio <= high), log_ratios.shape).astype(jnp.float32)


@CORRECTIONS.register
def mask_outliers(
    log_ratios: jax.Array,
    mask: jax.Array,
    *,
    low: Annotated[float, "Ratio below which a token is an outlier.", Range(0)] = 1e-4,
    high: Annotated[float, "Ratio above which a token is an outlier; 0: no upper bound.", Range(0)] = 0.0,
) -> jax.Array:
    """1 for actions without an outlier, else 0 for all of their tokens.

    If the trainer finds one token impossible, its policy would not take the whole action. Source: as
    `truncate_sequences` (the veto of its section on rejection).
    """
    ratio = bounded_exp(log_ratios)
    outlier = mask & ((ratio < low) | ((ratio > high) if high else False))
    return jnp.broadcast_to(~jnp.any(outlier, axis=1, keepdims=True), log_ratios.shape).astype(jnp.float32)
