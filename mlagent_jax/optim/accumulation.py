"""Micro-batched gradients of a sum over a batch. Sums add, so the result does not depend on the micro-batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def summed_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, micro_rows: int
) -> tuple[Any, Any]:
    """Sum the gradient of `loss`'s first result, and its second result, over `batch` in micro-batches.

    Args:
      loss: (params, rows) -> (total, sums): a total over the rows, not a mean, and a pytree of further sums.
      batch: Pytree of arrays [batch, ...].
      micro_rows: Rows per micro-batch, a divisor of the batch; 0: the whole batch.

    Returns:
      (gradients, sums). Gradients are float32 if there are several micro-batches.

    Raises:
      ValueError: `micro_rows` does not divide the batch.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    gradient = jax.grad(loss, has_aux=True)
    if micro_rows in (0, rows):
        return gradient(params, batch)
    if rows % micro_rows:
        raise ValueError(f"micro-batches of {micro_rows} rows do not divide a batch of {rows}: choose a divisor")
    micro_batches = jax.tree.map(lambda x: x.reshape(rows // micro_rows, micro_rows, *x.shape[1:]), batch)

    def add(sums: Any, micro_batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(params, micro_batch)), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(gradient, params, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
    return jax.lax.scan(add, zeros, micro_batches)[0]


def mapped(function: Callable[[Any], Any], batch: Any, micro_rows: int) -> Any:
    """Apply `function` ([batch, ...] to [batch, ...]) to `micro_rows` rows at a time; 0: to the whole batch."""
    rows = jax.tree.leaves(batch)[0].shape[0]
    if micro_rows in (0, rows):
        return function(batch)
    micro_batches = jax.tree.map(lambda x: x.reshape(rows // micro_rows, micro_rows, *x.shape[1:]), batch)
    return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), jax.lax.map(function, micro_batches))
