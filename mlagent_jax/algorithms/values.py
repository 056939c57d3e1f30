"""The critic's loss, and the share of the returns' variance that the critic explains."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mlagent_jax.algorithms.means import Mean, Metrics, aggregate


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip: float | None,
    aggregation: str = "token",
) -> tuple[Mean, Metrics]:
    """Compute the squared error of the critic, clipped around the values from which the advantages were computed.

        V_c = V_old + clip(V - V_old, -clip, clip)
        L   = 1/2 * mean(max((V - R)^2, (V_c - R)^2))

    As in the reference implementation of PPO (Dhariwal et al. 2017, OpenAI Baselines). With clip = None, 1/2 (V - R)^2.

    Args:
      values: [batch, time] of the critic in training; the only argument with a gradient.
      old_values: [batch, time] from before this batch's updates.
      returns: [batch, time], as `estimators.gae_advantages` returns them.
      mask: [batch, time], true on action tokens.
      clip: clip range in units of value, > 0; None: no clipping.
      aggregation: see `aggregate`.

    Returns:
      (loss, metrics per token): `value_clip_fraction` with clipping, and the inputs of `explained_variance`.
    """
    mask = mask.astype(bool)
    returns = jnp.where(mask, jax.lax.stop_gradient(returns).astype(jnp.float32), 0.0)
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    old_values = jnp.where(mask, jax.lax.stop_gradient(old_values).astype(jnp.float32), 0.0)
    errors = jnp.square(values - returns)
    residuals = returns - old_values
    metrics = {
        "returns": aggregate(returns, mask),
        "returns_squared": aggregate(jnp.square(returns), mask),
        "residuals": aggregate(residuals, mask),
        "residuals_squared": aggregate(jnp.square(residuals), mask),
    }
    if clip is not None:
        clipped = jnp.square(old_values + jnp.clip(values - old_values, -clip, clip) - returns)
        metrics["value_clip_fraction"] = aggregate(clipped > errors, mask)
        errors = jnp.maximum(errors, clipped)
    return aggregate(0.5 * errors, mask, aggregation), jax.lax.stop_gradient(metrics)


def explained_variance(metrics: Mapping[str, Mean]) -> float:
    """Return 1 - Var(R - V_old) / Var(R) from the accumulated metrics of `value_loss`; on the host, in float64.

    1: a perfect critic; 0: no better than a constant, or the returns do not vary.
    """
    mean = {name: float(metrics[name].total) / max(float(metrics[name].count), 1.0) for name in metrics}
    variance = mean["returns_squared"] - mean["returns"] ** 2
    unexplained = mean["residuals_squared"] - mean["residuals"] ** 2
    # If all returns are equal, float32 totals leave a rounding error of this size.
    if variance <= 1e-6 * mean["returns_squared"]:
        return 0.0
    return 1.0 - unexplained / variance
