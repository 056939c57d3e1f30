"""Gradients of a sum over a batch, a few rows at a time: exact, since sums add, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def summed_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, micro_rows: int
) -> tuple[Any, Any]:
    """Gradient of `loss`'s first result, and the sum of its second, over `batch` in micro-batches of `micro_rows` rows.

    Args:
      loss: (params, rows) -> (total, sums): a total over the rows, not a mean, and a pytree of sums beside it.
      batch: pytree of arrays [batch, ...].
      micro_rows: rows a pass, a divisor of batch; 0: all at once.

    Returns:
      (gradients in float32 where there are several passes, sums).

    Raises:
      ValueError: `micro_rows` does not divide the batch.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    gradient = jax.grad(loss, has_aux=True)
    if micro_rows in (0, rows):
        return gradient(params, batch)
    if rows % micro_rows:
        raise ValueError(f"micro-batches of {micro_rows} rows do not divide a batch of {rows}: choose a divisor")
    parts = jax.tree.map(lambda x: x.reshape(rows // micro_rows, micro_rows, *x.shape[1:]), batch)

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, part)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient, params, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def mapped(function: Callable[[Any], Any], batch: Any, micro_rows: int) -> Any:
    """`function` of `batch` ([batch, ...] to [batch, ...]), computed `micro_rows` rows at a time; 0: all at once."""
    rows = jax.tree.leaves(batch)[0].shape[0]
    if micro_rows in (0, rows):
        return function(batch)
    parts = jax.tree.map(lambda x: x.reshape(rows // micro_rows, micro_rows, *x.shape[1:]), batch)
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), jax.lax.map(function, parts))
