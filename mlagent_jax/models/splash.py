"""Splash attention (the fused TPU kernel that ships with JAX) behind the interface of `models.attention`.

The compiler cannot partition a Pallas kernel, so on a mesh each device runs it on its own rows and heads.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from mlagent_jax.parallelism import Rules

_BLOCK = 512  # query and key tokens per block
_LANES = 128  # sequences are padded to a multiple


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array | None,
    rules: Rules,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Compute causal attention as `attention.causal_attention`, on the mesh of `jax.set_mesh` if there is one.

    Args:
      query: [batch, time, heads, head_dim].
      key: [batch, time, kv_heads, head_dim].
      value: As `key`.
      segment_ids: int32 [batch, time], or None: each row is one segment.
      rules: From logical axes to mesh axes.
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
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)))
    run = functools.partial(_local, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        queries = rules.spec(("batch", "heads", "time", "head_dim"), mesh, query.shape, "query")
        keys = rules.spec(("batch", "kv_heads", "time", "head_dim"), mesh, key.shape, "key")
        rows = rules.spec(("batch", "time"), mesh)
        run = jax.shard_map(run, in_specs=(queries, keys, keys, rows), out_specs=queries, check_vma=False)
    return jnp.swapaxes(run(query, key, value, segment_ids), 1, 2)[:, :time]


def _local(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, interpret: bool) -> jax.Array:
    """Attend on one device: [batch, heads, time, head_dim], queries scaled."""
    heads, time = query.shape[1:3]
    block = min(_BLOCK, time)
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"), block),
        **dict.fromkeys(("block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), block),
    )
    mask = splash.MultiHeadMask([splash.CausalMask((time, time)) for _ in range(heads)])
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    return jax.vmap(kernel)(query, key, value, splash.SegmentIds(segment_ids, segment_ids))
