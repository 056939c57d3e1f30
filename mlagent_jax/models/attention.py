"""Causal self-attention over whole sequences: one function, several named kernels.

`xla` runs everywhere and supports packed segments with shared prompts. `cudnn` (NVIDIA) is fused and supports
right-padded rows with given lengths. `splash` (TPU) is fused and takes the same inputs as `xla`. The kernel is chosen
and logged once, when a graph is built. A requested kernel that cannot run is an error; there is no silent fallback.
Decoding attends to a cache instead: see `models.cache`.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from absl import logging

from mlagent_jax.parallelism import DEFAULT_RULES, Rules

Kernel = Literal["xla", "cudnn", "splash"]

_PLATFORM: dict[str, str] = {"cudnn": "gpu", "splash": "tpu"}
MASKED = -1e30  # finite: a row whose keys are all masked has no NaN
_MIN_BLOCK = 64  # queries per block; smaller matrix products are inefficient
_MAX_BLOCKS = 8  # per sequence; blocks are unrolled into the program


def choose_kernel(kernel: str = "auto", platform: str | None = None) -> Kernel:
    """Return the kernel to build a graph with; `auto` means splash on TPU and xla elsewhere.

    Raises:
      ValueError: An unknown name, or a kernel that does not run on `platform` (default: JAX's default backend).
    """
    platform = platform or jax.default_backend()
    chosen = ("splash" if platform == "tpu" else "xla") if kernel == "auto" else kernel
    if chosen not in get_args(Kernel):
        raise ValueError(f"attention kernel {kernel!r} is unknown: use auto, {', '.join(get_args(Kernel))}")
    if _PLATFORM.get(chosen, platform) != platform:
        raise ValueError(
            f"attention kernel {chosen!r} runs on {_PLATFORM[chosen]!r}, this is {platform!r}: use 'xla' or 'auto'"
        )
    _announce(chosen, kernel, platform)
    return chosen


@functools.cache  # log each choice once
def _announce(chosen: Kernel, requested: str, platform: str) -> None:
    logging.info("attention kernel: %s (requested: %s, on %s)", chosen, requested, platform)


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    prompt_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    kernel: Kernel = "xla",
    rules: Rules = DEFAULT_RULES,
) -> jax.Array:
    """Compute softmax attention of each token to earlier tokens of its segment; grouped queries share a key-value head.

    Args:
      query: [batch, time, heads, head_dim].
      key: [batch, time, kv_heads, head_dim].
      value: Same shape as `key`.
      segment_ids: int32 [batch, time]; tokens attend within equal ids only.
      prompt_ids: int32 [batch, time], requires `segment_ids`; the segment of the shared prompt that a token attends to
        as well. A token without a shared prompt has the id of its own segment.
      lengths: int32 [batch], for right-padded rows; an alternative to `segment_ids`. Outputs beyond a length are finite
        and meaningless.
      kernel: Implementation; see the module.
      rules: Map from logical axes to mesh axes, for a kernel that the compiler cannot partition.

    Returns:
      [batch, time, heads, head_dim] in the dtype of `query`.

    Raises:
      ValueError: `segment_ids` with the cudnn kernel, which would ignore them, or `prompt_ids` without `segment_ids`.
    """
    if kernel == "cudnn":
        return _cudnn(query, key, value, segment_ids, lengths)
    if prompt_ids is not None and segment_ids is None:
        raise ValueError("prompt_ids name segments: pass segment_ids with them")
    if kernel == "splash":
        from mlagent_jax.models.splash import splash_attention  # imported here: Pallas is slow to import, and TPU only

        if segment_ids is None and lengths is not None:
            segment_ids = (jnp.arange(query.shape[1]) < lengths[:, None]).astype(jnp.int32)
        return splash_attention(query, key, value, segment_ids, rules, prompt_ids=prompt_ids)
    return _xla(query, key, value, segment_ids, prompt_ids)  # causal and right-padded: no valid token sees padding


def block_size(time: int) -> int:
    """Return the number of queries per block of the xla kernel, for a sequence of `time` tokens."""
    return max(_MIN_BLOCK, -(-time // _MAX_BLOCKS))


def _xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array | None,
    prompt_ids: jax.Array | None,
) -> jax.Array:
    """Attend from each block of queries to the keys before the end of the block.

    This halves the work of one masked product, and the scores fit the cache of a CPU.
    The backward pass recomputes each block's scores, so [time, time] is never stored. On two CPU cores, 16 rows of 300
    tokens: 37 ms forward and backward, against 120 ms for one masked product.
    """
    batch, time, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, time, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    size = block_size(time)
    blocks = []
    for start in range(0, time, size):
        end = min(start + size, time)
        visible = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        if segment_ids is not None:
            keys = segment_ids[:, None, :end]
            seen = segment_ids[:, start:end, None] == keys
            if prompt_ids is not None:
                seen |= prompt_ids[:, start:end, None] == keys
            visible &= seen[:, None, None]
        blocks.append(_block(grouped[:, :, :, start:end], key[:, :, :end], value[:, :, :end], visible))
    return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(query.shape)


@jax.checkpoint
def _block(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """Attend from queries [batch, kv_heads, groups, block, head_dim] to keys [batch, kv_heads, keys, head_dim].

    `visible` is bool [..., block, keys].
    """
    scores = jnp.einsum("bkgth,bksh->bkgts", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bksh->bkgth", weights, value)


def _cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array | None, lengths: jax.Array | None
) -> jax.Array:
    if segment_ids is not None:
        raise ValueError("the cudnn attention kernel cannot keep packed segments apart: pass lengths, or use 'xla'")
    if lengths is None:
        lengths = jnp.full(query.shape[:1], query.shape[1], jnp.int32)
    return jax.nn.dot_product_attention(
        *(query, key, value),
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
