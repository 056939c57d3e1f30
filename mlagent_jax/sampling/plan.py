"""How many slots fit: the bytes that a slot takes, and what is free, before anything is allocated."""

from __future__ import annotations

import bisect
import dataclasses

import jax
import jax.numpy as jnp
import psutil

from mlagent_jax.models import ModelConfig, Params
from mlagent_jax.sampling.config import SamplerConfig

_LOGITS_COPIES = 4  # fp32 [slots, vocab] alive at once in a decoding step: logits, log-probs, noise, sorted
_SHARE = 0.8  # of what is free: the rest is for prefill, the allocator and other programs
MOST_SLOTS = 256  # beyond, a decoding step of a 7B is bound by arithmetic and no longer by reading the weights


def cache_bytes(config: ModelConfig, length: int, dtype: str) -> int:
    """Bytes of the keys and values of so many tokens."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * length * jnp.dtype(dtype).itemsize


def slots_bytes(config: ModelConfig, settings: SamplerConfig, room: int, dtype: str, shards: int = 1) -> int:
    """Bytes of all slots: prompts of up to `room` tokens, what follows them, and the rows of a decoding step."""
    each = cache_bytes(config, settings.max_new_tokens, dtype) + _LOGITS_COPIES * 4 * config.vocab_size
    return settings.slots * each + settings.prompt_rows(shards) * cache_bytes(config, room, dtype)


def free_bytes(device: jax.Device) -> int:
    """What can still be allocated on a device; on a CPU half of the memory that the host has available."""
    stats = device.memory_stats()
    if device.platform == "cpu" or not stats or "bytes_limit" not in stats:
        return psutil.virtual_memory().available // 2
    return stats["bytes_limit"] - stats["bytes_in_use"]


def plan_slots(
    config: ModelConfig,
    settings: SamplerConfig,
    params: Params,
    room: int,
    dtype: str | None,
    *,
    copied: int = 0,
    heads: int = 1,
    shards: int = 1,
) -> int:
    """The most slots that fit, at most `MOST_SLOTS` a device.

    Args:
        config: The model.
        settings: What decides on the shapes, but for `slots`.
        params: Its weights, placed.
        room: Tokens of the longest prompt, padded.
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
    found = slots_that_fit(config, settings, room, dtype, free * heads)
    if not found:
        each = slots_bytes(config, dataclasses.replace(settings, slots=1), room, dtype) // heads
        raise ValueError(
            f"no slot fits: {max(free, 0) / 1e9:.2f} GB are free beside the weights, and one of "
            f"{room + settings.max_new_tokens} tokens takes {each / 1e9:.2f} GB: ask for shorter prompts or "
            "completions, or split the model over more devices"
        )
    return found * shards


def slots_that_fit(config: ModelConfig, settings: SamplerConfig, room: int, dtype: str, free: int) -> int:
    """The most slots, at most `MOST_SLOTS`, that take no more than `free` bytes; 0 where one takes more."""

    def fits(slots: int) -> bool:
        return slots_bytes(config, dataclasses.replace(settings, slots=slots), room, dtype) <= free

    return bisect.bisect_left(range(1, MOST_SLOTS + 1), True, key=lambda slots: not fits(slots))
