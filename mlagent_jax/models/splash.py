"""Splash attention (the fused TPU kernel that ships with JAX) behind the interface of `models.attention`.

The compiler cannot partition a Pallas kernel, so on a mesh each device runs it on its own rows and heads.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from mlagent_jax.parallelism import Rules

_BLOCK = 512  # query and key tokens per block
_LANES = 128  # sequences are padded to a multiple
_NO_SEGMENT = -1  # of a query that attends to no other segment than its own


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array | None,
    rules: Rules,
    *,
    prompt_ids: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Compute causal attention as `attention.causal_attention`, on the mesh of `jax.set_mesh` if there is one.

    Args:
      query: [batch, time, heads, head_dim].
      key: [batch, time, kv_heads, head_dim].
      value: As `key`.
      segment_ids: int32 [batch, time], or None: each row is one segment.
      rules: From logical axes to mesh axes.
      prompt_ids: int32 [batch, time], the segment that a token attends to beside its own, or None.
      interpret: Run the kernel's program without a TPU, slowly: for tests.

    Returns:
      [batch, time, heads, head_dim].
    """
    batch, time, _, head_dim = query.shape
    if segment_ids is None:
        segment_ids = jnp.ones((batch, time), jnp.int32)
    pad = -time % (_LANES if time <= _BLOCK else _BLOCK)
    query, key, value = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (query * head_dim**-0.5, key, value)
    )
    ids = (segment_ids,) if prompt_ids is None else (segment_ids, prompt_ids)
    ids = tuple(jnp.pad(each, ((0, 0), (0, pad))) for each in ids)
    run = functools.partial(_local, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        queries = rules.spec(("batch", "heads", "time", "head_dim"), mesh, query.shape, "query")
        keys = rules.spec(("batch", "kv_heads", "time", "head_dim"), mesh, key.shape, "key")
        rows = (rules.spec(("batch", "time"), mesh),) * len(ids)
        run = jax.shard_map(run, in_specs=(queries, keys, keys, *rows), out_specs=queries, check_vma=False)
    return jnp.swapaxes(run(query, key, value, *ids), 1, 2)[:, :time]


def _local(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    prompt_ids: jax.Array | None = None,
    *,
    interpret: bool,
) -> jax.Array:
    """Attend on one device: [batch, heads, time, head_dim], queries scaled."""
    heads, time = query.shape[1:3]
    block = min(_BLOCK, time)
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"), block),
        **dict.fromkeys(("block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), block),
    )
    mask = splash.MultiHeadMask([splash.CausalMask((time, time)) for _ in range(heads)])
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    own = splash.SegmentIds(segment_ids, segment_ids)
    if prompt_ids is None:
        return jax.vmap(kernel)(query, key, value, own)
    elsewhere = jnp.where(prompt_ids == segment_ids, _NO_SEGMENT, prompt_ids)
    return jax.vmap(_of_two_segments, (None, 0, 0, 0, 0, 0))(
        kernel, query, key, value, own, splash.SegmentIds(elsewhere, segment_ids)
    )


@jax.custom_vjp
def _of_two_segments(
    kernel: splash_attention_kernel.SplashAttentionKernel,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    own: splash.SegmentIds,
    prompt: splash.SegmentIds,
) -> jax.Array:
    """Attend to one's own segment and to the prompt's under one softmax, [heads, time, head_dim].

    The kernel compares one id of a query with one of a key, so it runs once for each segment. With outputs o1, o2 and
    log-sum-exps l1, l2 of the scores:

        l = logaddexp(l1, l2)          o = exp(l1 - l) o1 + exp(l2 - l) o2
    """
    return _forward(kernel, query, key, value, own, prompt)[0]


def _forward(kernel: splash_attention_kernel.SplashAttentionKernel, *arguments: Any) -> tuple[jax.Array, Any]:
    *qkv, own, prompt = arguments
    masks = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    run = splash_attention_kernel.SplashAttentionKernel(*masks, **kernel.kwargs | {"save_residuals": True})
    (out, (norm,)), (other, (other_norm,)) = run(*qkv, own), run(*qkv, prompt)
    total = jnp.logaddexp(norm, other_norm)
    parts = ((out, norm), (other, other_norm))
    merged = sum(jnp.exp(each - total)[..., None] * part.astype(jnp.float32) for part, each in parts)
    merged = merged.astype(out.dtype)
    return merged, (kernel, arguments, merged, total)


def _backward(residuals: Any, gradient: jax.Array) -> tuple[Any, ...]:
    """Add up the gradients of both runs. With the merged output and log-sum-exp in place of its own, the kernel's
    backward pass gives exactly a run's share: dS = exp(s - l) (do v - do o)."""
    kernel, (*qkv, own, prompt), merged, total = residuals
    options = dict(kernel.kwargs)
    masks = (kernel.dq_mask_info, kernel.dkv_mask_info)

    def share(ids: splash.SegmentIds) -> tuple[jax.Array, ...]:
        kept = (*qkv, ids, None, merged, total, *masks)
        return splash_attention_kernel._splash_attention_bwd(**options, res=kept, do=gradient)[3:6]

    summed = jax.tree.map(jnp.add, share(own), share(prompt))
    return (None, *summed, None, None)


_of_two_segments.defvjp(_forward, _backward)
