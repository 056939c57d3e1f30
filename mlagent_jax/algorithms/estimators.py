"""Advantage estimators by name: each maps the rewards of a batch to an advantage for every token.

A function of `ESTIMATORS` maps `Rewards` to (advantages, returns), both [batch, time] float32 and 0 outside the mask.
The critic learns the returns; None: the estimator uses no critic, and none is trained. `normalise` scales advantages
afterwards, under a separate setting. `combinations` defines which choices work together.

Under `jax.jit` over sharded arrays the sums are over the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from environments.registry import Range, Registry

WHITEN_EPSILON = 1e-8
"""Constant added to a variance before its root."""
GRPO_EPSILON = 1e-4
"""Constant added to a group's standard deviation, so that advantages of nearly equal rewards stay small."""
NORMALISATIONS = ("none", "group", "batch")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rewards:
    """Inputs of an estimator. A row is one action; its reward falls on its last token."""

    rewards: jax.Array
    """[batch] rewards of the objective's mean term, less the KL penalties."""
    added: jax.Array
    """[batch] rewards of the objective's best-of-k term (`max_at_k`); they include their baseline and take no other."""
    token_rewards: jax.Array
    """[batch, time] sum of both: rewards on the last token of each row, KL penalties on their own tokens."""
    values: jax.Array
    """[batch, time] values of the critic before each token is chosen."""
    mask: jax.Array
    """[batch, time], true on action tokens."""
    groups: jax.Array
    """[batch] integer ids in any order; actions sampled from one state have equal ids."""
    baselines: jax.Array
    """[batch] mean reward of each row's state, tracked before this batch (`rl.tracker`)."""

    @property
    def rows(self) -> jax.Array:
        """Return [batch], true if a row counts (an infrastructure failure does not)."""
        return jnp.any(self.mask, axis=1)


Estimator = Callable[[Rewards], tuple[jax.Array, jax.Array | None]]
ESTIMATORS: Registry[Estimator] = Registry("advantage estimator", "mlagent_jax.estimators")


def place_on_last(rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """Put the reward of each sequence on its last action token.

    Args:
      rewards: [batch].
      mask: [batch, time], true on action tokens.

    Returns:
      [batch, time] float32: the reward on a row's last action token, 0 elsewhere. A row without action tokens is 0
      everywhere, whatever its reward.
    """
    mask = mask.astype(bool)
    later = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # action tokens from here to the end of the row
    return jnp.where(mask & (later == 1), rewards.astype(jnp.float32)[:, None], 0.0)


def gae_advantages(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Estimate advantages over the action tokens of each row (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    With t running over a row's action tokens in order, T the last of them, V the value before token t is chosen and
    r the reward of token t:

        delta_t = r_t + gamma * V_{t+1} - V_t        V_{T+1} = 0
        A_t     = delta_t + gamma * lam * A_{t+1}    A_{T+1} = 0
        R_t     = A_t + V_t

    gamma and lambda apply per token. An action's last token is terminal: there is no bootstrap after it, even if the
    action was cut at the token limit. Tokens outside the mask are not time steps: they are skipped, so padding on
    either side and observations between two actions have no effect.

    Args:
      rewards: [batch, time].
      values: [batch, time].
      mask: [batch, time], true on action tokens.
      gamma: discount per token, in [0, 1].
      lam: lambda, in [0, 1]; a scalar, or [batch].

    Returns:
      (advantages, returns), [batch, time] float32, 0 outside the mask.
    """
    mask = mask.astype(bool)
    rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)

    def backward(carry, token):  # noqa: ANN001, ANN202 (local to the scan)
        next_value, next_advantage = carry  # [batch] each, of the next action token
        reward, value, acts = token
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = (jnp.where(acts, value, next_value), jnp.where(acts, advantage, next_advantage))
        return carry, jnp.where(acts, advantage, 0.0)

    zeros = jnp.zeros(rewards.shape[:1], jnp.float32)
    _, advantages = jax.lax.scan(backward, (zeros, zeros), (rewards.T, values.T, mask.T), reverse=True)
    advantages = advantages.T
    return advantages, advantages + values


@ESTIMATORS.register
def gae(
    batch: Rewards,
    *,
    gamma: Annotated[float, "Discount per token of the action.", Range(0, 1)] = 1.0,
    lam: Annotated[float, "Lambda of the policy's advantages, per token of the action.", Range(0, 1)] = 1.0,
    critic_lam: Annotated[float, "Lambda of the critic's returns.", Range(0, 1)] = 1.0,
    length_alpha: Annotated[float, "Length-adaptive lambda for the policy, in place of `lam`; 0: off.", Range(0)] = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation with the critic as baseline; see `gae_advantages`.

    With `length_alpha` the policy's lambda is 1 - 1 / (length_alpha * l) for an action of l tokens, at least 0. The sum
    of the weights of the temporal differences then stays proportional to l. Source: Yue et al. 2025, arXiv 2504.05118
    (VAPO: separate lambdas for policy and critic, length-adaptive lambda with alpha = 0.05).
    """
    rewards, values, mask = batch.token_rewards, batch.values, batch.mask
    by_row: float | jax.Array = lam
    if length_alpha:
        lengths = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1.0)
        by_row = jnp.maximum(1.0 - 1.0 / (length_alpha * lengths), 0.0)
    advantages, returns = gae_advantages(rewards, values, mask, gamma, by_row)
    if length_alpha or critic_lam != lam:
        returns = gae_advantages(rewards, values, mask, gamma, critic_lam)[1]
    return advantages, returns


def _spread(batch: Rewards, by_row: jax.Array) -> tuple[jax.Array, None]:
    """Give every token of a row the row's advantage; there are no returns."""
    return jnp.where(batch.mask, (by_row + jnp.where(batch.rows, batch.added, 0.0))[:, None], 0.0), None


def _same_group(batch: Rewards) -> jax.Array:
    """Return [batch, batch], true if both rows count and are of one group.

    Comparing all pairs costs batch^2 bits, and needs neither sorted ids nor their number in advance.
    """
    return (batch.groups[:, None] == batch.groups[None, :]) & batch.rows[None, :] & batch.rows[:, None]


def _is_tied(values: jax.Array, among: jax.Array) -> jax.Array:
    """Return [batch], true if all `values` [batch] that `among` [batch, batch] selects for a row are equal.

    Their difference from the mean would be rounding noise, which a division by its own deviation scales to 1.
    """
    highest = jnp.max(jnp.where(among, values[None, :], -jnp.inf), axis=1)
    lowest = jnp.min(jnp.where(among, values[None, :], jnp.inf), axis=1)
    return highest <= lowest


def _centred_on_group(batch: Rewards) -> tuple[jax.Array, jax.Array]:
    """Return (r_i - mean of i's group, size of i's group); the first is exactly 0 if a group's rewards are equal."""
    same = _same_group(batch)
    rewards = jnp.where(batch.rows, batch.rewards.astype(jnp.float32), 0.0)
    size = jnp.sum(same, axis=1, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(same, rewards[None, :], 0.0), axis=1) / jnp.maximum(size, 1.0)
    return jnp.where(batch.rows & ~_is_tied(rewards, same), rewards - mean, 0.0), size


@ESTIMATORS.register
def grpo(batch: Rewards) -> tuple[jax.Array, None]:
    """Reward minus the group's mean (Shao et al. 2024, arXiv 2402.03300, section 4.1.2, outcome supervision).

        A_i = r_i - mean(r_G)            divided by std(r_G) + 1e-4 under the normalisation `group`, as in the paper

    Under `none` this is Dr. GRPO's (Liu et al. 2025, arXiv 2503.20783). A group of one gives 0, since it has no
    comparison.
    """
    return _spread(batch, _centred_on_group(batch)[0])


@ESTIMATORS.register
def rloo(batch: Rewards) -> tuple[jax.Array, None]:
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740).

        A_i = r_i - 1 / (n - 1) * sum_{j in G, j != i} r_j  =  n / (n - 1) * (r_i - mean(r_G))

    A group of one gives 0.
    """
    centred, size = _centred_on_group(batch)
    return _spread(batch, centred * size / jnp.maximum(size - 1.0, 1.0))


@ESTIMATORS.register
def opo(batch: Rewards) -> tuple[jax.Array, None]:
    """OPO: the minimum-variance baseline if gradients of tokens are orthogonal (Hao et al. 2025, arXiv 2505.23585).

        A_i = r_i - sum_j l_j * r_j / sum_j l_j          l: length in tokens; j over G without i

    The paper's sum includes i, which biases the gradient by about 1/n; here it is excluded. A group of one gives 0.
    """
    same = _same_group(batch)
    others = same & ~jnp.eye(len(batch.rewards), dtype=bool)
    rewards = jnp.where(batch.rows, batch.rewards.astype(jnp.float32), 0.0)
    lengths = jnp.sum(batch.mask, axis=1, dtype=jnp.float32)
    weights = jnp.where(others, lengths[None, :], 0.0)
    total = jnp.sum(weights, axis=1)
    baseline = jnp.sum(weights * rewards[None, :], axis=1) / jnp.maximum(total, 1.0)
    return _spread(batch, jnp.where((total > 0) & ~_is_tied(rewards, same), rewards - baseline, 0.0))


@ESTIMATORS.register
def reinforce_plus_plus(batch: Rewards) -> tuple[jax.Array, None]:
    """REINFORCE++: no group and no critic (Hu et al. 2025, arXiv 2501.03262).

        A_it = sum_{u >= t} r_iu         the reward, minus the KL penalties from t on if the KL is in the reward

    Normalise over the batch, as in the paper.
    """
    zeros = jnp.zeros_like(batch.token_rewards)
    return gae_advantages(batch.token_rewards, zeros, batch.mask, 1.0, 1.0)[0], None


@ESTIMATORS.register
def reinforce_plus_plus_baseline(batch: Rewards) -> tuple[jax.Array, None]:
    """REINFORCE++-baseline: minus the group's mean, then normalised over the batch (as `reinforce_plus_plus`).

    A_i = r_i - mean(r_G)
    """
    return _spread(batch, _centred_on_group(batch)[0])


@ESTIMATORS.register
def single_stream(
    batch: Rewards,
    *,
    half_life: Annotated[
        float,
        "KL of the policy's updates, in nats per token, that halves the weight of the past.",
        Range(0, open_low=True),
    ] = 0.06,
    low: Annotated[float, "Minimum weight of the past after an update.", Range(0, 1)] = 0.875,
    high: Annotated[float, "Maximum weight of the past after an update.", Range(0, 1)] = 0.96,
) -> tuple[jax.Array, None]:
    """SPO: a tracked mean reward of each state as baseline, for as few as one action per state.

        A_i = r_i - v(s_i)      v: from previous batches (`rl.tracker`, which reads the parameters)

    The baseline does not depend on this batch, so it does not bias the gradient. Normalise over the batch, as in the
    paper: Xu and Ding 2025, arXiv 2509.13232.
    """
    del half_life, low, high
    return _spread(batch, jnp.where(batch.rows, batch.rewards - batch.baselines, 0.0))


def normalise(advantages: jax.Array, batch: Rewards, kind: str) -> jax.Array:
    """Scale advantages [batch, time] under a named normalisation.

        none:   A
        group:  A_i / (std(r_G) + 1e-4)          std is the sample's (divided by n - 1); a group of one is unchanged
        batch:  (A - mean(A)) / std(A)           over all tokens of the batch: `whiten`

    Raises:
      ValueError: there is no such normalisation.
    """
    if kind == "none":
        return advantages
    if kind == "batch":
        return whiten(advantages, batch.mask)
    if kind == "group":
        centred, size = _centred_on_group(batch)
        squares = jnp.sum(jnp.where(_same_group(batch), jnp.square(centred)[None, :], 0.0), axis=1)
        deviation = jnp.sqrt(squares / jnp.maximum(size - 1.0, 1.0))
        return advantages / (jnp.where(size > 1, deviation + GRPO_EPSILON, 1.0))[:, None]
    raise ValueError(f"normalisation is {kind!r}; choose one of {', '.join(NORMALISATIONS)}")


def whiten(advantages: jax.Array, mask: jax.Array, *, epsilon: float = WHITEN_EPSILON) -> jax.Array:
    """Scale to mean 0 and variance 1 over all masked entries of the batch, whatever its shape.

        A' = (A - mean(A)) / sqrt(var(A) + epsilon)      var is the population's (divided by n)

    Pass the global batch: a micro-batch would compare each action only with its few neighbours. A single entry, or
    entries that are all equal, become exactly 0.

    Returns:
      An array of the same shape, float32, 0 outside the mask.
    """
    mask = mask.astype(bool)
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    advantages = jnp.where(mask, advantages.astype(jnp.float32), 0.0)
    centred = jnp.where(mask, advantages - jnp.sum(advantages) / count, 0.0)
    highest = jnp.max(jnp.where(mask, advantages, -jnp.inf), initial=-jnp.inf)
    lowest = jnp.min(jnp.where(mask, advantages, jnp.inf), initial=jnp.inf)
    scaled = centred * jax.lax.rsqrt(jnp.sum(jnp.square(centred)) / count + epsilon)
    return jnp.where(highest > lowest, scaled, 0.0)
