"""The critic's loss, and how well the critic explains the returns."""

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
    """Computes the squared error of the critic, clipped around the values the advantages were computed with.

        V_c = V_old + clip(V - V_old, -clip, clip)
        L   = 1/2 * mean(max((V - R)^2, (V_c - R)^2))

    As in the reference implementation of PPO (Dhariwal et al. 2017, OpenAI Baselines). With clip = None, 1/2 (V - R)^2.

    Args:
      values: [batch, time] of the critic that is trained; the only argument with a gradient.
      old_values: [batch, time], from before this batch's updates.
      returns: [batch, time], as of `estimators.gae_advantages`.
      mask: [batch, time], true on action tokens.
      clip: in units of value, > 0; None for no clipping.
      aggregation: see `aggregate`.

    Returns:
      (loss, metrics a token): `value_clip_fraction` with clipping, and what `explained_variance` takes.
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
    """1 - Var(R - V_old) / Var(R) from the accumulated metrics of `value_loss`; on the host, in float64.

    1 is a perfect critic, 0 one no better than a constant; 0 also where the returns do not vary.
    """
    mean = {name: float(metrics[name].total) / max(float(metrics[name].count), 1.0) for name in metrics}
    variance = mean["returns_squared"] - mean["returns"] ** 2
    unexplained = mean["residuals_squared"] - mean["residuals"] ** 2
    # Float32 totals leave rounding of this size where all returns are equal.
    if variance <= 1e-6 * mean["returns_squared"]:
        return 0.0
    return 1.0 - unexplained / variance
