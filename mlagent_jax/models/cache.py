"""Key-value cache of the sampler, and the steps that use it.

`prefill` runs whole prompts, `prefill_part` long prompts chunk by chunk, and `decode_step` one token per slot.

A slot is a cache row that holds one sequence; each slot has its own position. Keys and values are one array per layer,
because XLA would copy a stacked array, carried through a loop, at each token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mlagent_jax.models import rope
from mlagent_jax.models.attention import MASKED, causal_attention
from mlagent_jax.models.decoder import Graph, Params, layer_params, run_layers
from mlagent_jax.parallelism import constrain

KEY_AXES = ("slots", "kv_heads", "head_dim", "time")
VALUE_AXES = ("slots", "kv_heads", "time", "head_dim")
KEY_BLOCK = 512  # keys per attention block of a prompt chunk; scores are [rows, heads, chunk, KEY_BLOCK]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Rotated keys and values, one array of each per layer.

    The layouts match the matrix products of decoding (rows of queries times keys, rows of weights times values); on a
    CPU they are three times as fast as the transposed ones.
    """

    keys: list[jax.Array]
    """[slots, kv_heads, head_dim, length]"""
    values: list[jax.Array]
    """[slots, kv_heads, length, head_dim]"""

    @property
    def length(self) -> int:
        """Return the capacity of a slot in tokens."""
        return self.values[0].shape[2]


def init_cache(graph: Graph, slots: int, length: int, dtype: jnp.dtype) -> Cache:
    """Return an empty cache for `slots` sequences of up to `length` tokens, sharded over the mesh of `jax.set_mesh`.

    Raises:
      ValueError: The mesh does not divide the slots or the key-value heads.
    """
    config = graph.config

    sizes = {"slots": slots, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim, "time": length}

    def layers(axes: tuple[str, ...]) -> list[jax.Array]:
        shape = tuple(sizes[axis] for axis in axes)
        return [constrain(jnp.zeros(shape, dtype), axes, graph.rules, "cache") for _ in range(config.num_layers)]

    return Cache(layers(KEY_AXES), layers(VALUE_AXES))


def prefill(
    graph: Graph, params: Params, tokens: jax.Array, lengths: jax.Array, cache: Cache, slots: jax.Array
) -> tuple[jax.Array, Cache]:
    """Run whole prompts and write their keys and values to their slots.

    Args:
      graph: The model.
      params: Its parameters.
      tokens: int32 [rows, time], right-padded.
      lengths: int32 [rows].
      cache: The cache, in the compute dtype.
      slots: int32 [rows], the slot of each row; a row whose slot is out of bounds is not written.

    Returns:
      (hidden state of each row's last token [rows, hidden], the cache). Beyond a prompt's length the cache holds
        padding, which decoding overwrites before it becomes visible.
    """

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        attended = causal_attention(query, key, value, lengths=lengths, kernel=graph.attention, rules=graph.rules)
        return attended, _as_cached(key, value)

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    hidden, (keys, values) = run_layers(graph, params, tokens, positions, attend, compute_dtype=cache.keys[0].dtype)

    time = tokens.shape[1]
    return _last(hidden, lengths), Cache(
        [layer.at[slots, :, :, :time].set(keys[index], mode="drop") for index, layer in enumerate(cache.keys)],
        [layer.at[slots, :, :time].set(values[index], mode="drop") for index, layer in enumerate(cache.values)],
    )


def prefill_part(
    graph: Graph,
    params: Params,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    cache: Cache,
    slots: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Run a chunk of each prompt, whose earlier chunks are in the cache, and write it to the cache.

    Memory depends on the chunk, not on the prompt: attention runs over the used blocks of the cache with a running
    softmax (Milakov and Gimelshein, 2018). It is the same on every platform; `graph.attention` is not used.

    Args:
      graph: The model.
      params: Its parameters, layers stacked or as from `layer_params`.
      tokens: int32 [rows, time], right-padded.
      starts: int32 [rows], the position of each chunk's first token; `starts + time` is within the cache.
      lengths: int32 [rows], tokens of each chunk.
      cache: The cache, in the compute dtype.
      slots: int32 [rows], as in `prefill`; the hidden state of a row whose slot is out of bounds is meaningless.

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
            new_keys, new_values = _as_cached(key, value)
            cached = (
                _write_chunk(keys[index], new_keys, slots, starts, KEY_AXES.index("time")),
                _write_chunk(values[index], new_values, slots, starts, VALUE_AXES.index("time")),
            )
            return _attend_to_slots(query, *cached, slots, positions, reach), cached

        x, (keys[index], values[index]) = graph.bind("layers", layer)(x, cos_sin, attend, graph.rules)
    hidden = graph.bind("final_norm", params["final_norm"])(x)
    return _last(hidden, lengths), Cache(keys, values)


def decode_step(
    graph: Graph, params: Params, tokens: jax.Array, positions: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Run one token for every slot: write it to the cache and attend to all positions up to it.

    Args:
      graph: The model.
      params: Its parameters, layers stacked or as from `layer_params`.
      tokens: int32 [slots].
      positions: int32 [slots], the position of each token; one beyond the cache is not written.
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
            # Each slot writes at its own position; a write beyond the cache is dropped.
            places = jnp.arange(len(tokens))
            cached = (
                keys[index].at[places, :, :, positions].set(key[:, 0], mode="drop", unique_indices=True),
                values[index].at[places, :, positions].set(value[:, 0], mode="drop", unique_indices=True),
            )
            return _attend_to_cache(query[:, 0], *cached, positions)[:, None], cached

        x, (keys[index], values[index]) = graph.bind("layers", layer)(x, cos_sin, attend, graph.rules)
    return graph.bind("final_norm", params["final_norm"])(x)[:, 0], Cache(keys, values)


def _last(hidden: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return the state of each row's last token: [rows, time, hidden] -> [rows, hidden]."""
    return jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]


def _as_cached(key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Transpose [rows, time, kv_heads, head_dim] to the layouts of `Cache`."""
    return key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)


def _write_chunk(cached: jax.Array, new: jax.Array, slots: jax.Array, starts: jax.Array, axis: int) -> jax.Array:
    """Write rows of `new` to their slots, one window per row, from `starts` along the time `axis`."""
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, axis)
    )
    places = jnp.stack((slots, starts), axis=1)
    return jax.lax.scatter(cached, places, new, numbers, mode="drop")


def _attend_to_slots(
    query: jax.Array, keys: jax.Array, values: jax.Array, slots: jax.Array, positions: jax.Array, reach: jax.Array
) -> jax.Array:
    """Attend from [rows, time, heads, head_dim] to the rows' slots of the cache, up to and including each position.

    `reach`, int32 []: exclusive upper bound of the positions; blocks from there on are not read.
    """
    rows, time, heads, head_dim = query.shape
    kv_heads, length = values.shape[1:3]
    block = min(KEY_BLOCK, length)
    grouped = query.reshape(rows, time, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)

    def read(cached: jax.Array, start: jax.Array, axis: int) -> jax.Array:
        numbers = jax.lax.GatherDimensionNumbers(
            offset_dims=(1, 2, 3), collapsed_slice_dims=(0,), start_index_map=(0, axis)
        )
        places = jnp.stack((slots, jnp.broadcast_to(start, slots.shape)), axis=1)
        sizes = [1, *cached.shape[1:]]
        sizes[axis] = block
        return jax.lax.gather(cached, places, numbers, tuple(sizes), mode="clip")

    def attend(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        highest, total, mixed = carry
        start = jnp.minimum(index * block, length - block)  # the last block overlaps the one before
        at = start + jnp.arange(block)
        block_keys = read(keys, start, KEY_AXES.index("time"))
        scores = jnp.einsum("rkgtd,rkds->rkgts", grouped, block_keys, preferred_element_type=jnp.float32)
        visible = (at >= index * block) & (at <= positions[:, None, None, :, None])
        scores = jnp.where(visible, scores * head_dim**-0.5, MASKED)
        higher = jnp.maximum(highest, jnp.max(scores, axis=-1))  # finite from the first block on: position 0 is visible
        weights, kept = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
        new = jnp.einsum(
            "rkgts,rksd->rkgtd",
            weights.astype(values.dtype),
            read(values, start, VALUE_AXES.index("time")),
            preferred_element_type=jnp.float32,
        )
        return higher, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + new

    zeros = jnp.zeros(grouped.shape[:-1], jnp.float32)
    carry = (zeros + MASKED, zeros, jnp.zeros(grouped.shape, jnp.float32))
    _, total, mixed = jax.lax.fori_loop(0, -(-reach // block), attend, carry)
    return (mixed / total[..., None]).astype(query.dtype).transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _attend_to_cache(query: jax.Array, keys: jax.Array, values: jax.Array, positions: jax.Array) -> jax.Array:
    """Attend from [slots, heads, head_dim] to one layer of the cache, up to and including each slot's position."""
    slots, heads, head_dim = query.shape
    kv_heads, length = values.shape[1:3]
    grouped = query.reshape(slots, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("skgh,skht->skgt", grouped, keys, preferred_element_type=jnp.float32) * head_dim**-0.5
    visible = jnp.arange(length) <= positions[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1).astype(values.dtype)
    return jnp.einsum("skgt,skth->skgh", weights, values).reshape(slots, heads, head_dim)
