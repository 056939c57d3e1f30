"""max@k: the reward of an action for its contribution to the best of several actions from its state."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def best_of(rewards: jax.Array, groups: jax.Array, mask: jax.Array, k: int) -> jax.Array:
    """Compute what each action adds to the best of `k` actions from its state.

        r'_i = mean over the subsets S of i's group with i in S and |S| = k of  max(S) - max(S without i)

    Maximising r' maximises E[max of k], not E[r]: the unbiased estimate of its gradient with the leave-one-out baseline
    (max@k of Walder and Karkhanis 2025, "Pass@K Policy Optimization", section 4). An agent that tries several steps
    and keeps the best needs one good step among them, not the same good step every time: an action that only repeats
    its neighbours' result adds nothing. k = 1 returns the rewards unchanged.

    In closed form: with the others of i's group sorted, x_1 <= ... <= x_m, the largest of k - 1 of them is x_j in
    C(j - 1, k - 2) of C(m, k - 1) subsets, and i adds max(r_i - x_j, 0) to it. If masks leave fewer than k actions in
    the group, k is its size; a single action adds its whole reward.

    Args:
      rewards: [batch], one per sequence.
      groups: [batch] integer ids; actions sampled from one state have equal ids.
      mask: [batch], true if the sequence counts.
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
    # below[i, j]: i precedes j in the order of its group; ties are broken by index.
    below = (rewards[:, None] < rewards[None, :]) | (
        (rewards[:, None] == rewards[None, :]) & (index[:, None] < index[None, :])
    )
    place = jnp.sum(others & below, axis=0)[None, :] - below  # [i, j]: number of i's others that precede j
    count = jnp.sum(others, axis=1)
    taken = jnp.minimum(k - 1, count)  # number of others in a subset
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
