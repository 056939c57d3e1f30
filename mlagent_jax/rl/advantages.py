"""From rewards to advantages: pure functions over arrays and a mask, between the collector and the losses.

Everything is computed in float32 whatever comes in. A mask marks the tokens (or the sequences) that count; what lies
outside it may hold anything, NaN included, and comes out as 0. Under `jax.jit` over sharded arrays the sums are over
the global batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

WHITEN_EPSILON = 1e-8
"""Added to a variance before its root: whitening equal advantages gives 0, not a division by zero."""
GRPO_EPSILON = 1e-4
"""Added to a group's standard deviation: large enough that float32 rounding of equal rewards stays below 1e-3."""


def place_on_last(rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """Puts one reward a sequence on its last action token.

    Args:
      rewards: [batch].
      mask: [batch, time], true on action tokens.

    Returns:
      [batch, time] float32: the reward where a row's last action token is, 0 elsewhere; a row without action tokens
      is all 0, whatever its reward.
    """
    mask = mask.astype(bool)
    later = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # action tokens from here to the end of the row
    return jnp.where(mask & (later == 1), rewards.astype(jnp.float32)[:, None], 0.0)


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation over the action tokens of each row (Schulman et al. 2016, eq. 16).

    With t running over a row's action tokens in order, T the last of them, V the value before token t is chosen and
    r the reward of token t:

        delta_t = r_t + gamma * V_{t+1} - V_t        V_{T+1} = 0
        A_t     = delta_t + gamma * lam * A_{t+1}    A_{T+1} = 0
        R_t     = A_t + V_t

    gamma and lambda act per token. An action's last token is terminal: nothing is bootstrapped after it, also where
    the action was cut at the token limit. Tokens outside the mask are no time steps: they are skipped wherever they
    stand, so padding on either side and observations between two actions change nothing.

    Args:
      rewards: [batch, time].
      values: [batch, time].
      mask: [batch, time], true on action tokens.
      gamma: discount a token, in [0, 1].
      lam: lambda, in [0, 1].

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


def whiten(advantages: jax.Array, mask: jax.Array, *, epsilon: float = WHITEN_EPSILON) -> jax.Array:
    """Mean 0 and variance 1 over all masked entries of the batch, whatever its shape.

        A' = (A - mean(A)) / sqrt(var(A) + epsilon)      var is the population's (divided by n)

    To be given the global batch: over a micro-batch it would compare each action with its few neighbours alone. A
    single entry, or entries that are all equal, become 0.

    Returns:
      An array of the same shape, float32, 0 outside the mask.
    """
    mask = mask.astype(bool)
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    advantages = jnp.where(mask, advantages.astype(jnp.float32), 0.0)
    centred = jnp.where(mask, advantages - jnp.sum(advantages) / count, 0.0)
    return centred * jax.lax.rsqrt(jnp.sum(jnp.square(centred)) / count + epsilon)


def best_of(rewards: jax.Array, groups: jax.Array, mask: jax.Array, k: int) -> jax.Array:
    """What each action adds to the best of `k` actions from its state.

        r'_i = mean over the subsets S of i's group with i in S and |S| = k of  max(S) - max(S without i)

    Maximising r' maximises E[max of k], not E[r]: the unbiased estimate of its gradient with the leave-one-out baseline
    (max@k of Walder and Karkhanis 2025, "Pass@K Policy Optimization", section 4). An agent that tries several steps
    and keeps its best needs one good step among them, not the same good step every time: an action that only repeats
    what its neighbours reach adds nothing. k = 1 leaves the rewards as they are.

    In closed form: with the others of i's group sorted, x_1 <= ... <= x_m, the largest of k - 1 of them is x_j in
    C(j - 1, k - 2) of C(m, k - 1) subsets, and i adds max(r_i - x_j, 0) to it. Where masks leave fewer than k in the
    group, k is its size; one that is alone adds its whole reward.

    Args:
      rewards: [batch], one a sequence.
      groups: [batch] integer ids; equal ids are actions sampled from one state.
      mask: [batch], true where the sequence counts.
      k: static, at least 1.

    Returns:
      [batch] float32, 0 where masked out.

    Raises:
      ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; the best of at least 1 action is meant")
    mask = mask.astype(bool)
    rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
    if k == 1:
        return rewards
    index = jnp.arange(len(rewards))
    others = (groups[:, None] == groups[None, :]) & mask[:, None] & mask[None, :] & (index[:, None] != index[None, :])
    # below[i, j]: i comes before j in the order of its group; ties by place, so that it is an order.
    below = (rewards[:, None] < rewards[None, :]) | (
        (rewards[:, None] == rewards[None, :]) & (index[:, None] < index[None, :])
    )
    place = jnp.sum(others & below, axis=0)[None, :] - below  # [i, j]: how many of i's others come before j
    count = jnp.sum(others, axis=1)
    taken = jnp.minimum(k - 1, count)  # how many others a subset holds
    share = _binomial(place, taken[:, None] - 1, k - 1) / _binomial(count, taken, k - 1)[:, None]
    added = jnp.maximum(rewards[:, None] - rewards[None, :], 0.0)
    together = jnp.sum(jnp.where(others, share * added, 0.0), axis=1)
    return jnp.where(mask, jnp.where(count > 0, together, rewards), 0.0)


def _binomial(n: jax.Array, k: jax.Array, at_most: int) -> jax.Array:
    """C(n, k) in float32 for integer arrays, 0 <= k <= `at_most`; 0 where k > n; k below 0 counts as 0."""
    result = jnp.ones(jnp.broadcast_shapes(n.shape, k.shape), jnp.float32)
    for i in range(at_most):
        result = jnp.where(i < k, result * jnp.maximum(n - i, 0) / (i + 1), result)
    return result


def _centred_on_group(rewards: jax.Array, groups: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
    """(r_i - mean of i's group, size of i's group, [batch, batch] true where j counts and is of i's group).

    The comparison of every pair costs batch^2 bits and needs neither sorted ids nor their number in advance.
    """
    mask = mask.astype(bool)
    rewards = jnp.where(mask, rewards.astype(jnp.float32), 0.0)
    same = (groups[:, None] == groups[None, :]) & mask[None, :] & mask[:, None]
    size = jnp.sum(same, axis=1, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(same, rewards[None, :], 0.0), axis=1) / jnp.maximum(size, 1.0)
    return jnp.where(mask, rewards - mean, 0.0), size, same


def grpo(rewards: jax.Array, groups: jax.Array, mask: jax.Array) -> jax.Array:
    """GRPO (Shao et al. 2024, section 4.1.2, outcome supervision):

        A_i = (r_i - mean(r_G)) / (std(r_G) + 1e-4)

    over the sequences G of one group; std is the sample's (divided by n - 1). A group of one gives 0: there is nothing
    to compare with.
    """
    centred, size, same = _centred_on_group(rewards, groups, mask)
    squares = jnp.sum(jnp.where(same, jnp.square(centred)[None, :], 0.0), axis=1)
    return centred / (jnp.sqrt(squares / jnp.maximum(size - 1.0, 1.0)) + GRPO_EPSILON)


def rloo(rewards: jax.Array, groups: jax.Array, mask: jax.Array) -> jax.Array:
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024):

        A_i = r_i - 1 / (n - 1) * sum_{j in G, j != i} r_j  =  n / (n - 1) * (r_i - mean(r_G))

    A group of one gives 0.
    """
    centred, size, _ = _centred_on_group(rewards, groups, mask)
    return centred * size / jnp.maximum(size - 1.0, 1.0)


def reinforce_plus_plus(rewards: jax.Array, groups: jax.Array, mask: jax.Array) -> jax.Array:
    """REINFORCE++ (Hu et al. 2025): no group and no critic, rewards normalised over the batch; `groups` is unused.

    A_i = (r_i - mean(r)) / std(r)
    """
    del groups
    return whiten(rewards, mask)


def reinforce_plus_plus_baseline(rewards: jax.Array, groups: jax.Array, mask: jax.Array) -> jax.Array:
    """REINFORCE++-baseline (Hu et al. 2025): the group's mean taken off, then normalised over the whole batch.

    A_i = (c_i - mean(c)) / std(c)      c_i = r_i - mean(r_G)
    """
    return whiten(_centred_on_group(rewards, groups, mask)[0], mask)


GROUP_ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "grpo": grpo,
    "rloo": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
}


def group_advantages(name: str, rewards: jax.Array, groups: jax.Array, mask: jax.Array) -> jax.Array:
    """Advantages of whole sequences by the estimator called `name`, one of `GROUP_ESTIMATORS`.

    Args:
      name: of the estimator; static.
      rewards: [batch], one a sequence.
      groups: [batch] integer ids; equal ids are actions sampled from one state. Any integers, in any order.
      mask: [batch], true where the sequence counts (an infrastructure failure does not).

    Returns:
      [batch] float32, 0 where masked out; every token of a sequence takes its advantage.

    Raises:
      ValueError: no such estimator.
    """
    if name not in GROUP_ESTIMATORS:
        raise ValueError(f"advantage estimator is {name!r}; choose one of {', '.join(GROUP_ESTIMATORS)}")
    return GROUP_ESTIMATORS[name](rewards, groups, mask)
