"""Micro-batched gradients of a sum over a batch. Sums add, so the result does not depend on the micro-batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def summed_gradients(
    loss: Callable[[Any, Any], tuple[jax.Array, Any]],
    params: Any,
    batch: Any,
    micro_rows: int,
    layout: Callable[[Any], Any] = lambda gradients: gradients,
) -> tuple[Any, Any]:
    """Sum the gradient of `loss`'s first result, and its second result, over `batch` in micro-batches.

    Args:
      loss: (params, rows) -> (total, sums): a total over the rows, not a mean, and a pytree of further sums.
      batch: Pytree of arrays [batch, ...].
      micro_rows: Rows per micro-batch, a divisor of the batch; 0: the whole batch.
      layout: From the gradients of a micro-batch to the same in the layout that they are added in.

    Returns:
      (gradients, sums). Gradients are float32 if there are several micro-batches.

    Raises:
      ValueError: `micro_rows` does not divide the batch.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]

    def gradient(rows: Any) -> tuple[Any, Any]:
        gradients, sums = jax.grad(loss, has_aux=True)(params, rows)
        return layout(gradients), sums

    if micro_rows in (0, rows):
        return gradient(batch)
    if rows % micro_rows:
        raise ValueError(f"micro-batches of {micro_rows} rows do not divide a batch of {rows}: choose a divisor")
    micro_batches = jax.tree.map(lambda x: x.reshape(rows // micro_rows, micro_rows, *x.shape[1:]), batch)
    return summed_over(gradient, micro_batches)


def summed_over(function: Callable[[Any], Any], passes: Any, count: jax.Array | None = None) -> Any:
    """Sum `function` over the first `count` passes, in float32 at least; None: over all of them.

    The count is an argument of the program: batches that need more or fewer passes take the same one.

    Args:
      function: From one pass to a pytree of arrays; its gradients, say.
      passes: Pytree of arrays [passes, ...].
      count: int32 scalar.
    """
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        jax.eval_shape(function, jax.tree.map(lambda x: x[0], passes)),
    )

    def add(sums: Any, one_pass: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, function(one_pass)), None

    if count is None:
        return jax.lax.scan(add, zeros, passes)[0]
    passes = jax.tree.map(jnp.asarray, passes)  # NumPy's take no traced index.
    return jax.lax.fori_loop(0, count, lambda i, sums: add(sums, jax.tree.map(lambda x: x[i], passes))[0], zeros)
