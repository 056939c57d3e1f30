"""Supervised fine-tuning: one optimizer step on rows of samples, with the loss on action tokens only.

L(theta) = -1/N * sum over action tokens of log pi_theta(token | prompt, tokens before)      N: action tokens
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlagent_jax import models
from mlagent_jax.models import lora
from mlagent_jax.optim.accumulation import summed_gradients
from mlagent_jax.optim.optimizer import apply

Params = Any


@functools.partial(
    jax.jit,
    static_argnames=("graph", "optimizer", "remat", "compute_dtype", "micro_rows", "single"),
    donate_argnums=(0, 1),
)
def sft_step(
    params: Params,
    opt_state: optax.OptState,
    rows: Mapping[str, jax.Array],
    *,
    graph: Any,
    optimizer: optax.GradientTransformation,
    remat: str,
    compute_dtype: str,
    micro_rows: int = 0,
    base: Params | None = None,
    single: bool = False,
) -> tuple[Params, optax.OptState, dict[str, jax.Array]]:
    """Take one step over `rows` (arrays of `models.packing.Rows`, [batch, time]), in micro-batches of `micro_rows` (0:
    one batch; the result is the same). Parameters and state are donated. With a frozen `base`, `params` are its
    adapters and `graph` is adapted (`models.lora.adapted`). Rows without action tokens have no weight; a batch of such
    rows has loss 0 and gradient 0.

    Returns new parameters, new state and metrics: `loss` (nats per action token), `grad_norm`, `tokens` (without
    padding), `pairs` of them that attention compares, and `action_tokens`. `single`: each row holds one sample, so that
    lengths replace segments, for attention kernels without them.
    """

    def loss(params: Params, rows: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        whole = params if base is None else lora.join(base, params)
        total, count = _negative_log_likelihood(graph, whole, rows, remat, compute_dtype, single)
        filled = rows["segment_ids"] > 0
        # A float: pairs of long rows are more than an int32 holds.
        pairs = jnp.sum(jnp.where(filled, rows["positions"] + 1.0, 0.0))
        sums = {"loss": total, "action_tokens": count, "tokens": jnp.sum(filled), "pairs": pairs}
        return total, jax.lax.stop_gradient(sums)

    grads, metrics = summed_gradients(loss, params, rows, micro_rows, functools.partial(models.laid_out, graph))
    count = jnp.maximum(metrics["action_tokens"], 1)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    metrics |= {"loss": metrics["loss"] / count, "grad_norm": optax.tree.norm(grads)}
    with jax.named_scope("optimizer"):
        params, opt_state = apply(optimizer, grads, opt_state, params)
    return params, opt_state, metrics


@functools.partial(jax.jit, static_argnames=("graph", "compute_dtype", "single"))
def sft_loss(
    params: Params, rows: Mapping[str, jax.Array], *, graph: Any, compute_dtype: str, single: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return (total negative log-likelihood in nats, number) of the action tokens of `rows`: pairs add exactly.

    `single` is as in `sft_step`.
    """
    return _negative_log_likelihood(graph, params, rows, "none", compute_dtype, single)


def _negative_log_likelihood(
    graph: Any, params: Params, rows: Mapping[str, jax.Array], remat: str, compute_dtype: str, single: bool
) -> tuple[jax.Array, jax.Array]:
    layout = {name: rows[name] for name in ("positions", "segment_ids", "prompt_ids")}
    if single:  # at least 1, since attention over no key is NaN
        layout = {"lengths": jnp.maximum(jnp.sum(rows["segment_ids"] > 0, axis=1), 1)}
    hidden = models.hidden_states(
        graph,
        params,
        rows["tokens"],
        remat=remat,
        compute_dtype=jnp.dtype(compute_dtype),
        **layout,
    )
    log_probs, _ = models.token_log_probs(graph, params, hidden, rows["targets"])
    return -jnp.sum(jnp.where(rows["mask"], log_probs, 0.0)), jnp.sum(rows["mask"])
