"""How many slots fit: the bytes that a slot takes, and what is free, before anything is allocated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import psutil

from mlagent_jax.models import ModelConfig, Params

_LOGITS_COPIES = 4  # fp32 [slots, vocab] alive at once in a decoding step: logits, log-probs, noise, sorted
_SHARE = 0.8  # of what is free: the rest is for prefill, the allocator and other programs
MOST_SLOTS = 256  # beyond, a decoding step of a 7B is bound by arithmetic and no longer by reading the weights


def slot_bytes(config: ModelConfig, length: int, dtype: str) -> int:
    """Bytes of one slot whose sequence may have `length` tokens: its cache, and its rows of a decoding step."""
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * length * jnp.dtype(dtype).itemsize
    return cache + _LOGITS_COPIES * 4 * config.vocab_size


def free_bytes(device: jax.Device) -> int:
    """What can still be allocated on a device; on a CPU half of the memory that the host has available."""
    stats = device.memory_stats()
    if device.platform == "cpu" or not stats or "bytes_limit" not in stats:
        return psutil.virtual_memory().available // 2
    return stats["bytes_limit"] - stats["bytes_in_use"]


def plan_slots(
    config: ModelConfig,
    params: Params,
    length: int,
    dtype: str | None,
    *,
    copied: int = 0,
    heads: int = 1,
    shards: int = 1,
) -> int:
    """The most slots that fit, at most `MOST_SLOTS` a device.

    Args:
        config: The model.
        params: Its weights, placed.
        length: Tokens of a prompt and its completion, at most.
        dtype: Of activations and cache; None: that of the parameters.
        copied: Bytes of what is still to be copied of the weights, see `Preparation.copied_bytes`.
        heads: Over how many devices the key-value heads are split.
        shards: Over how many the slots are split, which are a multiple of it.

    Raises:
        ValueError: Not even one fits; the message has the figures.
    """
    leaves = jax.tree.leaves(params)
    dtype = dtype or leaves[0].dtype.name
    free = int(_SHARE * free_bytes(leaves[0].addressable_shards[0].device)) - copied // heads
    each = slot_bytes(config, length, dtype) // heads
    if free < each:
        raise ValueError(
            f"no slot fits: {max(free, 0) / 1e9:.2f} GB are free beside the weights, and one of {length} tokens takes "
            f"{each / 1e9:.2f} GB: ask for shorter prompts or completions, or split the model over more devices"
        )
    return min(MOST_SLOTS, free // each) * shards
