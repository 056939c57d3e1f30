"""Planning of slots: the bytes per slot against the free bytes of a device, before anything is allocated."""

from __future__ import annotations

import bisect
import dataclasses

import jax
import jax.numpy as jnp
import psutil

from mlagent_jax.models import ModelConfig, Params
from mlagent_jax.sampling.config import SamplerConfig

_LOGITS_COPIES = 4  # fp32 [slots, vocab] alive at once in a decoding step: logits, log-probs, noise, sorted logits
_SHARE = 0.8  # share of the free bytes for slots; the rest is for prefill, the allocator and other programs
MOST_SLOTS = 256  # with more, decoding of a 7B model is bound by arithmetic, no longer by reading the weights


def cache_bytes(config: ModelConfig, length: int, dtype: str) -> int:
    """Return the bytes of the keys and values of `length` tokens."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * length * jnp.dtype(dtype).itemsize


def slots_bytes(config: ModelConfig, settings: SamplerConfig, room: int, dtype: str, shards: int = 1) -> int:
    """Return the bytes of all slots: the cache of prompts, the cache of completions, and a decoding step's logits.

    Args:
        config: The model.
        settings: Shapes of the programs.
        room: Capacity of a prompt row in tokens.
        dtype: Dtype of the cache.
        shards: Number of shards that a mesh splits the slots into.
    """
    each = cache_bytes(config, settings.max_new_tokens, dtype) + _LOGITS_COPIES * 4 * config.vocab_size
    return settings.slots * each + settings.prompt_rows(shards) * cache_bytes(config, room, dtype)


def free_bytes(device: jax.Device) -> int:
    """Return the bytes that can still be allocated on a device; on a CPU, half of the host's available memory."""
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
    """Return the largest number of slots that fits, at most `MOST_SLOTS` per shard.

    Args:
        config: The model.
        settings: Shapes of the programs; `slots` is ignored.
        params: Weights on their devices.
        room: Capacity of a prompt row in tokens.
        dtype: Dtype of activations and cache; None: the dtype of the parameters.
        copied: Bytes of weights that are still to be copied, see `Preparation.copied_bytes`.
        heads: Number of devices that the key-value heads are split over.
        shards: Number of devices that the slots are split over; the result is a multiple of it.

    Raises:
        ValueError: Not even one slot fits. The message has the figures.
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
    """Return the largest number of slots, at most `MOST_SLOTS`, within `free` bytes; 0 if one slot exceeds them."""

    def fits(slots: int) -> bool:
        return slots_bytes(config, dataclasses.replace(settings, slots=slots), room, dtype) <= free

    return bisect.bisect_left(range(1, MOST_SLOTS + 1), True, key=lambda slots: not fits(slots))
