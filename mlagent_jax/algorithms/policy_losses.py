"""Policy losses by name: each maps log-probs, advantages and a mask to the objective of every token.

A function of `POLICY_LOSSES` has the signature of `PolicyLoss`. It returns the objective J [batch, time], which is
maximised, and metrics. `policy_loss` weights J by the off-policy correction and takes its mean under the aggregation.

Symbols: pi_theta is the policy in training; pi_old the proximal policy, the parameters at the start of this batch's
updates; A the advantage; rho = pi_theta / pi_old the ratio of a token's probabilities; sg[] stops the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from environments.registry import Choice, Range, Registry
from mlagent_jax.algorithms.means import MAX_LOG_RATIO, Mean, Metrics, aggregate, bounded_exp, masked_difference

PolicyLoss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Metrics]]
"""(log_probs, old_log_probs, advantages, mask), all [batch, time] -> (objective [batch, time], metrics).

The arguments are 0 outside the mask; only `log_probs` has a gradient. Parameters are keyword-only."""

POLICY_LOSSES: Registry[PolicyLoss] = Registry("policy loss", "mlagent_jax.policy_losses")


def policy_loss(
    loss: Choice[PolicyLoss],
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    aggregation: str = "token",
) -> tuple[Mean, Metrics]:
    """Compute L = -mean(w * J).

    Args:
      loss: a choice of `POLICY_LOSSES`.
      log_probs: [batch, time] of the chosen tokens under pi_theta; the only argument with a gradient.
      old_log_probs: [batch, time] under pi_old.
      advantages: [batch, time].
      mask: [batch, time], true on action tokens.
      weights: [batch, time], w, an off-policy correction (`corrections`); None for 1.
      aggregation: see `means.aggregate`.

    Returns:
      (loss, metrics per token): those of the loss function, and for all losses `ratio`, `log_ratio_abs` (0 on a batch's
      first step, when both policies are the same) and `kl_old` (k3 estimate of KL(pi_old || pi_theta)).
    """
    mask = mask.astype(bool)
    log_probs = jnp.where(mask, log_probs, 0.0)
    old_log_probs = jnp.where(mask, jax.lax.stop_gradient(old_log_probs), 0.0)
    advantages = jnp.where(mask, jax.lax.stop_gradient(advantages).astype(jnp.float32), 0.0)
    log_ratio = masked_difference(log_probs, old_log_probs, mask)
    held = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    objective, metrics = loss(log_probs, old_log_probs, advantages, mask)
    if weights is not None:
        objective = jax.lax.stop_gradient(weights) * objective
    metrics = metrics | {
        "ratio": aggregate(jnp.exp(held), mask),
        "log_ratio_abs": aggregate(jnp.abs(log_ratio), mask),
        "kl_old": aggregate(jnp.expm1(held) - held, mask),
    }
    return aggregate(-objective, mask, aggregation), jax.lax.stop_gradient(metrics)


@POLICY_LOSSES.register
def ppo_clip(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: Annotated[float, "Distance below 1 up to which the ratio counts.", Range(0, 1, open_low=True)] = 0.2,
    high: Annotated[
        float, "Distance above 1 up to which the ratio counts (clip-higher); 0: equal to `low`.", Range(0)
    ] = 0.0,
    dual: Annotated[float, "Bound on the ratio for negative advantages, above 1; 0: none.", Range(0)] = 0.0,
) -> tuple[jax.Array, Metrics]:
    """PPO's clipped objective.

        J = min(rho * A, clip(rho, 1 - low, 1 + high) * A)
        J = max(J, dual * A)   where A < 0, only with dual

    Sources: Schulman et al. 2017, arXiv 1707.06347 (clip); Yu et al. 2025, arXiv 2503.14476 (DAPO: two clip ranges); Ye
    et al. 2020, arXiv 1912.09729 (dual clip). With an off-policy correction this is the decoupled objective of Hilton
    et al. 2022, arXiv 2110.00641.

    Metrics: `clip_fraction`, share of tokens whose gradient the clip removes; with dual `dual_clip_fraction`.
    """
    ratio = bounded_exp(masked_difference(log_probs, old_log_probs, mask))
    free = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - low, 1.0 + (high or low)) * advantages
    objective = jnp.minimum(free, clipped)
    metrics = {"clip_fraction": aggregate(clipped < free, mask)}
    if dual:
        floor = jnp.where(advantages < 0, dual * advantages, -jnp.inf)
        metrics["dual_clip_fraction"] = aggregate(objective < floor, mask)
        objective = jnp.maximum(objective, floor)
    return objective, metrics


@POLICY_LOSSES.register
def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: Annotated[float, "Distance below 1 up to which an action's ratio counts.", Range(0, 1, open_low=True)] = 3e-4,
    high: Annotated[float, "Distance above 1 up to which an action's ratio counts.", Range(0, open_low=True)] = 4e-4,
) -> tuple[jax.Array, Metrics]:
    """GSPO: one ratio per action, the geometric mean of its tokens' ratios.

        s_i  = exp(1/|a_i| * sum_t log rho_it)
        s_it = sg[s_i] * pi_theta(a_it) / sg[pi_theta(a_it)]
        J_it = min(s_it * A_it, clip(s_it, 1 - low, 1 + high) * A_it)

    Source: Zheng et al. 2025, arXiv 2507.18071. This is its GSPO-token (section 4.3). If an action's tokens
    share one advantage and the aggregation is `sequence`, value and gradient are those of GSPO itself. The ranges are
    the paper's.

    Metrics: `clip_fraction`, `sequence_ratio`.
    """
    log_ratio = masked_difference(log_probs, old_log_probs, mask)
    lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    by_action = jax.lax.stop_gradient(bounded_exp(jnp.sum(log_ratio, axis=1, keepdims=True) / lengths))
    log_probs = log_probs.astype(jnp.float32)
    ratio = by_action * jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
    free = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantages
    metrics = {
        "clip_fraction": aggregate(clipped < free, mask),
        "sequence_ratio": aggregate(jnp.broadcast_to(by_action, mask.shape), mask),
    }
    return jnp.minimum(free, clipped), metrics


@POLICY_LOSSES.register
def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: Annotated[float, "Maximum distance of a weight below 1; 1: no bound.", Range(0, 1)] = 1.0,
    high: Annotated[float, "Maximum distance of a weight above 1.", Range(0)] = 4.0,
) -> tuple[jax.Array, Metrics]:
    """CISPO: a clipped weight of a token, which keeps its gradient (MiniMax-M1 2025, arXiv 2506.13585).

        J = sg[clip(rho, 1 - low, 1 + high)] * A * log pi_theta(a|s)

    The paper sets no lower bound and tunes the upper one; ScaleRL (Khatri et al. 2025, arXiv 2510.13786) takes caps
    of 4 to 8. The paper's mean is over tokens (aggregation `token`).

    Metrics: `clip_fraction`, share of tokens whose weight is clipped.
    """
    ratio = jax.lax.stop_gradient(bounded_exp(masked_difference(log_probs, old_log_probs, mask)))
    weight = jnp.clip(ratio, 1.0 - low, 1.0 + high)
    metrics = {"clip_fraction": aggregate(weight != ratio, mask)}
    return weight * advantages * log_probs.astype(jnp.float32), metrics


@POLICY_LOSSES.register
def dppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    divergence: Annotated[Literal["tv", "kl"], "Divergence that bounds the trust region."] = "tv",
    limit: Annotated[float, "Divergence beyond which a token no longer moves away.", Range(0)] = 0.15,
    cap: Annotated[float, "Truncation of the ratio, above 1; 0: none.", Range(0)] = 20.0,
) -> tuple[jax.Array, Metrics]:
    """DPPO: a trust region on the divergence of a token's distributions (Qi et al. 2026, arXiv 2602.04879).

        J = M * min(rho, cap) * A
        M = 0  where D > limit and (A > 0 and rho > 1, or A < 0 and rho < 1), else 1

    D compares (p, 1 - p) with (q, 1 - q), the chosen token against all others, p under pi_old and q under pi_theta:

        tv:  |p - q|          kl:  p log(p / q) + (1 - p) log((1 - p) / (1 - q))

    A ratio is strict with rare tokens and lenient with common ones: 1e-4 to 2e-4 is outside PPO's clip, 0.99 to 0.8
    within.

    Metrics: `clip_fraction`, share of tokens whose gradient the mask removes; `token_divergence`, mean of D.
    """
    ratio = bounded_exp(masked_difference(log_probs, old_log_probs, mask))
    old, new = jnp.exp(old_log_probs.astype(jnp.float32)), jnp.exp(jax.lax.stop_gradient(log_probs).astype(jnp.float32))
    if divergence == "tv":
        distance = jnp.abs(old - new)
    else:
        p, q = (jnp.clip(x, 1e-7, 1.0 - 1e-7) for x in (old, new))
        distance = p * jnp.log(p / q) + (1.0 - p) * (jnp.log1p(-p) - jnp.log1p(-q))
    moving_away = jnp.where(advantages > 0, ratio > 1.0, (advantages < 0) & (ratio < 1.0))
    stopped = moving_away & (distance > limit)
    metrics = {"clip_fraction": aggregate(stopped, mask), "token_divergence": aggregate(distance, mask)}
    ratio = jnp.minimum(ratio, cap) if cap else ratio
    return jnp.where(stopped, 0.0, ratio * advantages), metrics


@POLICY_LOSSES.register
def sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    positive: Annotated[float, "Temperature for positive advantages.", Range(0, open_low=True)] = 1.0,
    negative: Annotated[float, "Temperature for other advantages.", Range(0, open_low=True)] = 1.05,
) -> tuple[jax.Array, Metrics]:
    """SAPO: a soft gate in place of a clip (Gao et al. 2025, arXiv 2511.20347).

        J = 4 / tau * sigmoid(tau * (rho - 1)) * A       tau: `positive` where A > 0, else `negative`

    At rho = 1 the gradient is that of rho * A; away from 1 it fades by 4 * s * (1 - s), with s the sigmoid. The
    temperatures are the paper's.

    Metrics: `gate`, mean of 4 * s * (1 - s).
    """
    ratio = bounded_exp(masked_difference(log_probs, old_log_probs, mask))
    temperature = jnp.where(advantages > 0, positive, negative)
    gate = jax.nn.sigmoid(temperature * (ratio - 1.0))
    return 4.0 / temperature * gate * advantages, {"gate": aggregate(4.0 * gate * (1.0 - gate), mask)}
