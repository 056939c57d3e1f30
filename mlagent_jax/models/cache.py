"""The key-value cache of the sampler, and the steps over it: `prefill` of prompts, `prefill_part` of long ones part by
part, and `decode_step` of one token a slot.

A slot is a row of the cache that holds one sequence; slots stand at positions of their own. Keys and values are one
array a layer: a stacked array, carried through a loop, would be copied by XLA at each token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mlagent_jax.models import rope
from mlagent_jax.models.attention import MASKED, causal_attention
from mlagent_jax.models.decoder import Graph, Params, layer_params, run_layers
from mlagent_jax.parallelism import constrain

CACHE_AXES = ("slots", "kv_heads", "time", "head_dim")
KEY_BLOCK = 512  # keys that a part of a prompt attends to at once: its scores are [rows, heads, part, KEY_BLOCK]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Rotated keys, and values: a list of [slots, kv_heads, length, head_dim], one a layer.

    Heads lie before positions, so that the batched products of decoding need no transposition of the cache.
    """

    keys: list[jax.Array]
    values: list[jax.Array]


def init_cache(graph: Graph, slots: int, length: int, dtype: jnp.dtype) -> Cache:
    """An empty cache for `slots` sequences of up to `length` tokens, split over the mesh of `jax.set_mesh`.

    Raises:
        ValueError: Where that mesh does not divide the slots or the key-value heads.
    """
    config = graph.config

    def layer() -> jax.Array:
        zeros = jnp.zeros((slots, config.num_kv_heads, length, config.head_dim), dtype)
        return constrain(zeros, CACHE_AXES, graph.rules, "cache")

    return Cache([layer() for _ in range(config.num_layers)], [layer() for _ in range(config.num_layers)])


def prefill(
    graph: Graph, params: Params, tokens: jax.Array, lengths: jax.Array, cache: Cache, slots: jax.Array
) -> tuple[jax.Array, Cache]:
    """Run whole prompts and write them to their slots.

    Args:
        graph: The model.
        params: Its parameters.
        tokens: int32 [rows, time], right-padded.
        lengths: int32 [rows].
        cache: Its dtype is the compute dtype.
        slots: int32 [rows], where each row goes; a row whose slot is out of bounds is not written.

    Returns:
        (hidden state of each row's last token [rows, hidden], the cache). Cache rows beyond a prompt's length hold
        padding, which decoding overwrites before it can be seen.
    """

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        attended = causal_attention(query, key, value, lengths=lengths, kernel=graph.attention, rules=graph.rules)
        return attended, (jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    hidden, (keys, values) = run_layers(graph, params, tokens, positions, attend, compute_dtype=cache.keys[0].dtype)

    def write(held: list[jax.Array], new: jax.Array) -> list[jax.Array]:
        time = tokens.shape[1]
        return [layer.at[slots, :, :time].set(new[index], mode="drop") for index, layer in enumerate(held)]

    return _last(hidden, lengths), Cache(write(cache.keys, keys), write(cache.values, values))


def prefill_part(
    graph: Graph,
    params: Params,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    cache: Cache,
    slots: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Run a part of each prompt, whose earlier parts stand in the cache, and write it there.

    Memory follows the part and not the prompt: attention goes over blocks of the cache, as far as they are in use, with
    a running softmax (Milakov and Gimelshein, 2018). It is the same on every platform; `graph.attention` is not used.

    Args:
        graph: The model.
        params: Its parameters, layers stacked or as from `layer_params`.
        tokens: int32 [rows, time], right-padded.
        starts: int32 [rows], the position of each part's first token; `starts + time` is within the cache.
        lengths: int32 [rows], tokens of each part.
        cache: Its dtype is the compute dtype.
        slots: int32 [rows], as in `prefill`; of a row whose slot is out of bounds the hidden state means nothing.

    Returns:
        As `prefill`.
    """
    positions = starts[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    x = graph.bind("embedder", params["embedder"])(tokens, cache.keys[0].dtype, graph.rules)
    cos_sin = rope.table(graph.config, positions)
    reach = jnp.max(starts + lengths)
    keys, values = list(cache.keys), list(cache.values)
    for index, layer in enumerate(layer_params(params)["layers"]):

        def attend(
            query: jax.Array, key: jax.Array, value: jax.Array, index: int = index
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            held = tuple(
                _write_part(cached[index], new, slots, starts) for cached, new in ((keys, key), (values, value))
            )
            return _attend_to_slots(query, *held, slots, positions, reach), held

        x, (keys[index], values[index]) = graph.bind("layers", layer)(x, cos_sin, attend, graph.rules)
    hidden = graph.bind("final_norm", params["final_norm"])(x)
    return _last(hidden, lengths), Cache(keys, values)


def decode_step(
    graph: Graph, params: Params, tokens: jax.Array, positions: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """One token for every slot: write it to the cache, attend to all up to it.

    Args:
        graph: The model.
        params: Its parameters, layers stacked or as from `layer_params`.
        tokens: int32 [slots].
        positions: int32 [slots], where each token stands; one beyond the cache is not written.
        cache: The cache.

    Returns:
        (hidden states [slots, hidden], the cache).
    """
    dtype = cache.keys[0].dtype
    x = graph.bind("embedder", params["embedder"])(tokens[:, None], dtype, graph.rules)
    cos_sin = rope.table(graph.config, positions[:, None])
    keys, values = list(cache.keys), list(cache.values)
    for index, layer in enumerate(layer_params(params)["layers"]):

        def attend(
            query: jax.Array, key: jax.Array, value: jax.Array, index: int = index
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            held = _append(keys[index], key[:, 0], positions), _append(values[index], value[:, 0], positions)
            return _attend_to_cache(query[:, 0], *held, positions)[:, None], held

        x, (keys[index], values[index]) = graph.bind("layers", layer)(x, cos_sin, attend, graph.rules)
    return graph.bind("final_norm", params["final_norm"])(x)[:, 0], Cache(keys, values)


def _last(hidden: jax.Array, lengths: jax.Array) -> jax.Array:
    """[rows, time, hidden] -> the state of each row's last token, [rows, hidden]."""
    return jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]


def _write_part(held: jax.Array, new: jax.Array, slots: jax.Array, starts: jax.Array) -> jax.Array:
    """Write `new` [rows, time, kv_heads, head_dim] to its slots from `starts` on, a window a row."""
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 2)
    )
    places = jnp.stack((slots, starts), axis=1)
    return jax.lax.scatter(held, places, jnp.swapaxes(new, 1, 2), numbers, mode="drop")


def _attend_to_slots(
    query: jax.Array, keys: jax.Array, values: jax.Array, slots: jax.Array, positions: jax.Array, reach: jax.Array
) -> jax.Array:
    """[rows, time, heads, head_dim] over the rows' slots of the cache, up to and with each position.

    `reach`, int32 []: no position is at or beyond it; blocks from there on are not read.
    """
    rows, time, heads, head_dim = query.shape
    kv_heads, length = keys.shape[1:3]
    block = min(KEY_BLOCK, length)
    grouped = query.reshape(rows, time, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(1, 2, 3), collapsed_slice_dims=(0,), start_index_map=(0, 2))

    def read(held: jax.Array, start: jax.Array) -> jax.Array:
        places = jnp.stack((slots, jnp.broadcast_to(start, slots.shape)), axis=1)
        return jax.lax.gather(held, places, numbers, (1, kv_heads, block, head_dim), mode="clip")

    def attend(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest, total, mixed = carry
        start = jnp.minimum(index * block, length - block)  # the last block reaches back into the one before
        at = start + jnp.arange(block)
        scores = jnp.einsum("rkgtd,rksd->rkgts", grouped, read(keys, start), preferred_element_type=jnp.float32)
        visible = (at >= index * block) & (at <= positions[:, None, None, :, None])
        scores = jnp.where(visible, scores * head_dim**-0.5, MASKED)
        higher = jnp.maximum(highest, jnp.max(scores, axis=-1))  # finite from the first block on: position 0 is visible
        weights, kept = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
        new = jnp.einsum(
            "rkgts,rksd->rkgtd",
            weights.astype(values.dtype),
            read(values, start),
            preferred_element_type=jnp.float32,
        )
        return higher, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + new

    zeros = jnp.zeros(grouped.shape[:-1], jnp.float32)
    carry = (zeros + MASKED, zeros, jnp.zeros(grouped.shape, jnp.float32))
    _, total, mixed = jax.lax.fori_loop(0, -(-reach // block), attend, carry)
    return (mixed / total[..., None]).astype(query.dtype).transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _append(held: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Write `new` [slots, kv_heads, head_dim] at each slot's position."""
    return held.at[jnp.arange(len(held)), :, positions].set(new, mode="drop", unique_indices=True)


def _attend_to_cache(query: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """[slots, heads, head_dim] over [slots, kv_heads, length, head_dim], up to and with each slot's position."""
    slots, heads, head_dim = query.shape
    kv_heads, length = keys.shape[1:3]
    grouped = query.reshape(slots, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("skgh,skth->skgt", grouped, keys, preferred_element_type=jnp.float32) * head_dim**-0.5
    visible = jnp.arange(length) <= positions[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1).astype(values.dtype)
    return jnp.einsum("skgt,skth->skgh", weights, values).reshape(slots, heads, head_dim)
