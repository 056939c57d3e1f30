"""The terms of the PPO loss, on log-probs, values and masks: no model in sight.

Every term is returned as a `Mean`, a (total, count) pair, beside metrics that are pairs too. Over micro-batches add the
totals and the counts and divide once at the end: the result is that of the whole batch, exactly, however it was cut.
For gradients: differentiate `total`, and divide by the count of the whole batch.

Everything is float32. What lies outside a mask may hold anything, NaN included: it is replaced before it is used, so
that it reaches neither a value nor a gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp

AGGREGATIONS = ("token", "sequence")
KL_KINDS = ("k1", "k2", "k3")
MAX_LOG_RATIO = 20.0
"""Log-ratios are held within +-20 (a ratio of 5e8), far outside any clip range: exp of more overflows float32, and an
infinity that is clipped away in the value still turns its gradient into NaN."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean on its way: scalars float32. Pairs add, exactly; `value` is taken once, at the end."""

    total: jax.Array
    count: jax.Array

    @property
    def value(self) -> jax.Array:
        """total / count; 0 where nothing was counted."""
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1.0), 0.0)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.total + other.total, self.count + other.count)


Metrics = dict[str, Mean]


def aggregate(values: jax.Array, mask: jax.Array, aggregation: str = "token") -> Mean:
    """Mean of `values` under a named weighting.

    `token`: every token of the batch weighs the same, so long actions weigh more.

        total = sum_{i,t} m_it * x_it                          count = sum_{i,t} m_it

    `sequence`: every action weighs the same, a token of a long one less.

        total = sum_i (sum_t m_it * x_it) / (sum_t m_it)       count = number of rows with any m_it

    Args:
      values: [batch, time].
      mask: [batch, time], true on action tokens. Rows that are masked out altogether do not count.
      aggregation: one of `AGGREGATIONS`.

    Raises:
      ValueError: no such aggregation.
    """
    mask = mask.astype(bool)
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    if aggregation == "token":
        return Mean(jnp.sum(values), jnp.sum(mask, dtype=jnp.float32))
    if aggregation == "sequence":
        lengths = jnp.sum(mask, axis=1, dtype=jnp.float32)
        means = jnp.sum(values, axis=1) / jnp.maximum(lengths, 1.0)
        return Mean(jnp.sum(means), jnp.sum(lengths > 0, dtype=jnp.float32))
    raise ValueError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")


def _masked_difference(left: jax.Array, right: jax.Array, mask: jax.Array) -> jax.Array:
    """left - right in float32, 0 outside the mask."""
    return jnp.where(mask, left.astype(jnp.float32) - right.astype(jnp.float32), 0.0)


def ppo_policy_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    behaviour_log_probs: jax.Array | None = None,
    max_importance_weight: float = 2.0,
    aggregation: str = "token",
) -> tuple[Mean, Metrics]:
    """PPO's clipped objective, negated; with behaviour log-probs the decoupled objective for stale samples.

        rho = pi_theta(a|s) / pi_old(a|s)                         the ratio that is clipped
        J   = min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)
        J   = max(J, dual_clip * A)   where A < 0                 only with dual_clip
        w   = min(pi_old(a|s) / mu(a|s), max_importance_weight)   only with behaviour log-probs; no gradient
        L   = -mean(w * J)

    pi_theta is the policy that is trained, pi_old the proximal policy (the parameters at the start of this batch's
    updates), mu the behaviour policy that sampled. With mu = pi_old, w is 1 and this is PPO.
    Sources: Schulman et al. 2017 (clip), Ye et al. 2020 (dual clip), Hilton et al. 2022 (decoupled objective),
    Espeholt et al. 2018 (truncated weights), Yu et al. 2025 (two clip ranges).

    Args:
      log_probs: [batch, time] of the chosen tokens under pi_theta; the only argument with a gradient.
      old_log_probs: [batch, time] under pi_old.
      advantages: [batch, time].
      mask: [batch, time], true on action tokens.
      clip_low: how far below 1 the ratio may count, in [0, 1].
      clip_high: how far above 1 the ratio may count, >= 0.
      dual_clip: bound on the ratio's weight where the advantage is negative, > 1; None for none.
      behaviour_log_probs: [batch, time] under mu, None for on-policy samples.
      max_importance_weight: where w is truncated.
      aggregation: see `aggregate`.

    Returns:
      (loss, metrics a token): `ratio`, `log_ratio_abs` (0 on a batch's first step, when both policies are the same),
      `clip_fraction`, `kl_old` (k3 estimate of KL(pi_old || pi_theta)), with dual_clip `dual_clip_fraction`; with
      behaviour log-probs `behaviour_gap` (mean of |log pi_old - log mu|), `importance_weight`, `truncated_fraction`.
    """
    mask = mask.astype(bool)
    advantages = jnp.where(mask, jax.lax.stop_gradient(advantages).astype(jnp.float32), 0.0)
    old_log_probs = jax.lax.stop_gradient(old_log_probs)
    log_ratio = _masked_difference(log_probs, old_log_probs, mask)
    held = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = jnp.exp(held)

    free = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high) * advantages
    objective = jnp.minimum(free, clipped)
    metrics = {
        "ratio": aggregate(ratio, mask),
        "log_ratio_abs": aggregate(jnp.abs(log_ratio), mask),
        "clip_fraction": aggregate(clipped < free, mask),
        "kl_old": aggregate(jnp.expm1(held) - held, mask),
    }
    if dual_clip is not None:
        floor = jnp.where(advantages < 0, dual_clip * advantages, -jnp.inf)
        metrics["dual_clip_fraction"] = aggregate(objective < floor, mask)
        objective = jnp.maximum(objective, floor)
    if behaviour_log_probs is not None:
        gap = _masked_difference(old_log_probs, jax.lax.stop_gradient(behaviour_log_probs), mask)
        weight = jnp.exp(jnp.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        metrics["behaviour_gap"] = aggregate(jnp.abs(gap), mask)
        metrics["truncated_fraction"] = aggregate(weight > max_importance_weight, mask)
        weight = jnp.minimum(weight, max_importance_weight)
        metrics["importance_weight"] = aggregate(weight, mask)
        objective = weight * objective
    return aggregate(-objective, mask, aggregation), jax.lax.stop_gradient(metrics)


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip: float | None,
    aggregation: str = "token",
) -> tuple[Mean, Metrics]:
    """Squared error of the critic, clipped around the values the advantages were computed with.

        V_c = V_old + clip(V - V_old, -clip, clip)
        L   = 1/2 * mean(max((V - R)^2, (V_c - R)^2))

    As in the reference implementation of PPO (Dhariwal et al. 2017, OpenAI Baselines). With clip = None, 1/2 (V - R)^2.

    Args:
      values: [batch, time] of the critic that is trained; the only argument with a gradient.
      old_values: [batch, time], from before this batch's updates.
      returns: [batch, time], as of `estimators.gae`.
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


def kl(log_probs: jax.Array, ref_log_probs: jax.Array, kind: str) -> jax.Array:
    """Estimates of KL(pi_theta || pi_ref) a token, from the chosen tokens alone.

        d = log pi_theta(a|s) - log pi_ref(a|s)
        k1 = d                       unbiased, high variance, may be negative
        k2 = 1/2 d^2                 biased, low variance; its gradient is unbiased where it stands in the loss
        k3 = exp(-d) - 1 + d         unbiased, low variance, never negative

    k1 belongs in the reward: in the loss its gradient has expectation 0. Source: Schulman 2020, "Approximating KL
    divergence" (joschu.net/blog/kl-approx.html).

    Args:
      log_probs: [...] under pi_theta, which also sampled.
      ref_log_probs: [...] under the reference.
      kind: one of `KL_KINDS`.

    Returns:
      [...] float32.

    Raises:
      ValueError: no such kind.
    """
    difference = log_probs.astype(jnp.float32) - ref_log_probs.astype(jnp.float32)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * jnp.square(difference)
    if kind == "k3":
        # expm1: exp(-d) - 1 loses every digit near d = 0, where a policy starts.
        return jnp.expm1(jnp.clip(-difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)) + difference
    raise ValueError(f"kl kind is {kind!r}; choose one of {', '.join(KL_KINDS)}")


def kl_loss(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array, *, kind: str, aggregation: str = "token"
) -> Mean:
    """Mean of `kl` over [batch, time] under a mask; the gradient is that of `log_probs` alone."""
    mask = mask.astype(bool)
    ref_log_probs = jnp.where(mask, jax.lax.stop_gradient(ref_log_probs), 0.0)
    return aggregate(kl(jnp.where(mask, log_probs, 0.0), ref_log_probs, kind), mask, aggregation)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats of softmax(logits): H = logsumexp(z) - sum_v p_v * z_v.

    Args:
      logits: [..., vocab]; -inf forbids a token. Its mean over a batch is `aggregate(entropy(logits), mask)`.

    Returns:
      [...] float32.
    """
    logits = logits.astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    allowed = jnp.isfinite(log_probs)
    log_probs = jnp.where(allowed, log_probs, 0.0)
    return -jnp.sum(jnp.where(allowed, jnp.exp(log_probs) * log_probs, 0.0), axis=-1)
