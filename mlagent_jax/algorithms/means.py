"""Means that add exactly over micro-batches, and the weightings of tokens in them.

Every term of a loss is a `Mean`, a (total, count) pair. Add totals and counts over micro-batches and divide once at the
end: the result is that of the whole batch, however it was split. For gradients, differentiate `total` and divide
by the count of the whole batch.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

AGGREGATIONS = ("token", "sequence", "constant")
MAX_LOG_RATIO = 20.0
"""Bound on the absolute log-ratio (a ratio of 5e8), far outside any clip range. exp of more overflows float32, and an
infinity that is clipped away in the value still turns its gradient into NaN."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """Accumulated mean: float32 scalars. Pairs add exactly; read `value` once, at the end."""

    total: jax.Array
    count: jax.Array

    @property
    def value(self) -> jax.Array | np.floating:
        """Return total / count; 0 if nothing was counted."""
        if isinstance(self.total, np.generic):  # read from the devices: no program is run for it
            return self.total / self.count if self.count > 0 else np.float32(0.0)
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1.0), 0.0)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.total + other.total, self.count + other.count)


Metrics = dict[str, Mean]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["pairs"], meta_fields=["names"])
@dataclasses.dataclass(frozen=True)
class Means:
    """Metrics in one array, which leaves the device at once."""

    names: tuple[str, ...]
    pairs: jax.Array
    """float32 [names, 2]: totals and counts."""

    @classmethod
    def of(cls, metrics: Metrics) -> Self:
        pairs = [jnp.stack((mean.total, mean.count)).astype(jnp.float32) for mean in metrics.values()]
        return cls(tuple(metrics), jnp.stack(pairs))

    def read(self) -> Metrics:
        """Return the metrics on the host, when the program that makes them is done."""
        pairs = np.asarray(self.pairs)
        return {name: Mean(*pair) for name, pair in zip(self.names, pairs, strict=True)}


def added(parts: Sequence[Metrics]) -> Metrics:
    """Return the sums of several steps' metrics, pair by pair."""
    return {name: functools.reduce(operator.add, (part[name] for part in parts)) for name in parts[0]}


def aggregate(values: jax.Array, mask: jax.Array, aggregation: str = "token") -> Mean:
    """Take the mean of `values` under a named weighting.

    `token`: every token of the batch has the same weight, so long actions have more.

        total = sum_{i,t} m_it * x_it                          count = sum_{i,t} m_it

    `sequence`: every action has the same weight, so a token of a long action has less.

        total = sum_i (sum_t m_it * x_it) / (sum_t m_it)       count = number of rows with any m_it

    `constant`: every token has the same weight in every batch: the sum over an action is divided by T, the maximum
    length of an action. The gradient is that of the mean over actions, without bias from their lengths (Dr. GRPO, Liu
    et al. 2025, arXiv 2503.20783).

        total = sum_{i,t} m_it * x_it / T                      count = number of rows with any m_it

    Args:
      values: [batch, time].
      mask: [batch, time], true on action tokens. Rows that are masked out completely do not count.
      aggregation: one of `AGGREGATIONS`.

    Raises:
      ValueError: no such aggregation.
    """
    mask = mask.astype(bool)
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    if aggregation == "token":
        return Mean(jnp.sum(values), jnp.sum(mask, dtype=jnp.float32))
    lengths = jnp.sum(mask, axis=1, dtype=jnp.float32)
    rows = jnp.sum(lengths > 0, dtype=jnp.float32)
    if aggregation == "sequence":
        return Mean(jnp.sum(jnp.sum(values, axis=1) / jnp.maximum(lengths, 1.0)), rows)
    if aggregation == "constant":
        return Mean(jnp.sum(values) / mask.shape[1], rows)
    raise ValueError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")


def masked_difference(left: jax.Array, right: jax.Array, mask: jax.Array) -> jax.Array:
    """Subtract in float32; 0 outside the mask."""
    return jnp.where(mask, left.astype(jnp.float32) - right.astype(jnp.float32), 0.0)


def bounded_exp(log_ratio: jax.Array) -> jax.Array:
    """Return exp of a log-ratio clipped to `MAX_LOG_RATIO`: finite, with gradient 0 beyond."""
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
