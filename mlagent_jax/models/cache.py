"""Key-value caches of the sampler, and the steps that use them.

`prefill` runs whole prompts, `prefill_part` long prompts chunk by chunk, and `decode_step` one token per slot.

There are two caches: one of prompts, a row each, and one of completions, a row per slot. Several slots attend to one
prompt row, whose keys and values are read once for all of them. A slot's attention to its prompt and its attention to
its own row are joined by their log-sum-exp (Juravsky et al. 2024, Athiwaratkun et al. 2024). Attention runs over the
blocks of a row, as many as the longest row in use needs. Keys and values are one array per layer, because XLA would
copy a stacked array, carried through a loop, at each token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlagent_jax.models import rope
from mlagent_jax.models.attention import MASKED, causal_attention
from mlagent_jax.models.decoder import Graph, Params, layer_params, run_layers
from mlagent_jax.parallelism import Rules, constrain

KEY_AXES = ("slots", "kv_heads", "head_dim", "time")
VALUE_AXES = ("slots", "kv_heads", "time", "head_dim")
KEY_BLOCK = 512  # keys per attention block of a prompt chunk; scores are [rows, heads, chunk, KEY_BLOCK]
_DECODE_BLOCK = 256  # minimum keys per attention block of decoding
_MOST_BLOCKS = 8  # maximum blocks per row in decoding; on accelerators each costs a few microseconds

_Softmax = tuple[jax.Array, jax.Array, jax.Array]
"""Attention before normalisation, all fp32: the highest score [rows, kv_heads, queries], the sum of
exp(score - highest) [rows, kv_heads, queries], and the sum of values with these weights
[rows, kv_heads, queries, head_dim]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Rotated keys and values, one array of each per layer.

    The layouts match the matrix products of decoding (queries times keys, weights times values). On a CPU, they are
    three times as fast as the transposed layouts.
    """

    keys: list[jax.Array]
    """[slots, kv_heads, head_dim, length]; [rows, ...] in the cache of prompts."""
    values: list[jax.Array]
    """[slots, kv_heads, length, head_dim]; [rows, ...] in the cache of prompts."""

    @property
    def length(self) -> int:
        """Return the capacity of a row in tokens."""
        return self.values[0].shape[2]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """Assignment of slots to the prompt rows that they attend to.

    A mesh splits slots and rows into the same number of shares. A slot and its row are in the same share, so that
    attention needs no communication. The indices in `members` and `places` are relative to the share.
    """

    lengths: jax.Array
    """int32 [rows]: tokens of the prompt; 0 if no slot reads the row."""
    members: jax.Array
    """int32 [rows, samples]: slots of each row; unused entries hold any slot."""
    places: jax.Array
    """int32 [slots]: index of each slot in the flattened `members`: row * samples + column."""


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
    """Run whole prompts and write their keys and values to their rows of the cache.

    Args:
      graph: The model.
      params: Its parameters.
      tokens: int32 [rows, time], right-padded.
      lengths: int32 [rows].
      cache: The cache of prompts, in the compute dtype.
      slots: int32 [rows], the cache row of each row; a row for which it is out of bounds is not written.

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
    graph: Graph,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    written: jax.Array,
    cache: Cache,
    prompts: Cache,
    groups: Groups,
) -> tuple[jax.Array, Cache]:
    """Run one token per slot: write it to the cache, and attend to the slot's prompt and completion.

    Args:
      graph: The model.
      params: Its parameters, layers stacked or as from `layer_params`.
      tokens: int32 [slots].
      positions: int32 [slots], the position of each token in its sequence.
      written: int32 [slots], the position of each token in its completion; a token beyond the cache is not written.
      cache: The cache of completions, in the compute dtype; a row per slot.
      prompts: The cache of prompts.
      groups: Prompt row of each slot.

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
                keys[index].at[places, :, :, written].set(key[:, 0], mode="drop", unique_indices=True),
                values[index].at[places, :, written].set(value[:, 0], mode="drop", unique_indices=True),
            )
            shared = prompts.keys[index], prompts.values[index]
            return _decode_attention(query[:, 0], *cached, written, *shared, groups, graph.rules)[:, None], cached

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
    groups, block = heads // kv_heads, min(KEY_BLOCK, length)
    grouped = query.reshape(rows, time, kv_heads, groups, head_dim).transpose(0, 2, 3, 1, 4)

    def read(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        places = jnp.stack((slots, jnp.broadcast_to(start, slots.shape)), axis=1)

        def one(cached: jax.Array, axis: int) -> jax.Array:
            numbers = jax.lax.GatherDimensionNumbers(
                offset_dims=(1, 2, 3), collapsed_slice_dims=(0,), start_index_map=(0, axis)
            )
            sizes = [1, *cached.shape[1:]]
            sizes[axis] = block
            return jax.lax.gather(cached, places, numbers, tuple(sizes), mode="clip")

        return one(keys, KEY_AXES.index("time")), one(values, VALUE_AXES.index("time"))

    flat = grouped.reshape(rows, kv_heads, groups * time, head_dim)
    _, total, mixed = _over_blocks(flat, read, jnp.tile(positions + 1, (1, groups)), reach, length, block)
    attended = (mixed / total[..., None]).astype(query.dtype).reshape(grouped.shape)
    return attended.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _decode_attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    written: jax.Array,
    prompt_keys: jax.Array,
    prompt_values: jax.Array,
    groups: Groups,
    rules: Rules,
) -> jax.Array:
    """Attend from [slots, heads, head_dim] to one layer of both caches; on a mesh, each device to its own share."""
    attend = _attend_to_both
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        # Query heads are split like key-value heads, so that a group of query heads is on the device of its head.
        heads = rules.spec(("slots", "kv_heads", "head_dim"), mesh, (*query.shape[:1], *values.shape[1:4:2]), "query")
        caches = [rules.spec(axes, mesh) for axes in (KEY_AXES, VALUE_AXES)]
        slots = rules.spec(("slots",), mesh)
        specs = (heads, *caches, slots, *caches, Groups(slots, rules.spec(("slots", None), mesh), slots))
        attend = jax.shard_map(attend, in_specs=specs, out_specs=heads, check_vma=False)
    return attend(query, keys, values, written, prompt_keys, prompt_values, groups)


def _attend_to_both(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    written: jax.Array,
    prompt_keys: jax.Array,
    prompt_values: jax.Array,
    groups: Groups,
) -> jax.Array:
    slots, heads, head_dim = query.shape
    kv_heads, (rows, samples) = values.shape[1], groups.members.shape
    grouped = query.reshape(slots, kv_heads, heads // kv_heads, head_dim)
    own = _attend_to_rows(grouped, keys, values, jnp.where(written < values.shape[2], written + 1, 0))
    # Gather the queries of all slots of a prompt: [rows, kv_heads, samples * groups, head_dim].
    asked = jnp.take(grouped, groups.members, axis=0, mode="clip").transpose(0, 2, 1, 3, 4)
    shared = _attend_to_rows(asked.reshape(rows, kv_heads, -1, head_dim), prompt_keys, prompt_values, groups.lengths)

    def back(found: jax.Array) -> jax.Array:
        """Scatter to slots: [rows, kv_heads, samples * groups, ...] -> [slots, kv_heads, groups, ...]."""
        apart = found.reshape(rows, kv_heads, samples, -1, *found.shape[3:]).swapaxes(1, 2)
        return jnp.take(apart.reshape(rows * samples, *apart.shape[2:]), groups.places, axis=0, mode="clip")

    _, total, mixed = _joined(own, tuple(map(back, shared)))
    tiny = jnp.finfo(jnp.float32).tiny  # a free slot attends to nothing
    return (mixed / jnp.maximum(total, tiny)[..., None]).astype(query.dtype).reshape(query.shape)


def _joined(one: _Softmax, other: _Softmax) -> _Softmax:
    """Join two attentions of the same queries into the attention to the keys of both."""
    highest = jnp.maximum(one[0], other[0])
    kept = [jnp.exp(part[0] - highest) for part in (one, other)]
    total = sum(weight * part[1] for weight, part in zip(kept, (one, other), strict=True))
    mixed = sum(weight[..., None] * part[2] for weight, part in zip(kept, (one, other), strict=True))
    return highest, total, mixed


def _attend_to_rows(query: jax.Array, keys: jax.Array, values: jax.Array, lengths: jax.Array) -> _Softmax:
    """Attend from [rows, kv_heads, queries, head_dim] to the first `lengths`, int32 [rows], positions of each row."""
    length = values.shape[2]
    block = decode_block(length)

    def read(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        if block == length:
            return keys, values
        return (
            jax.lax.dynamic_slice_in_dim(keys, start, block, KEY_AXES.index("time")),
            jax.lax.dynamic_slice_in_dim(values, start, block, VALUE_AXES.index("time")),
        )

    return _over_blocks(query, read, lengths[:, None], jnp.max(lengths), length, block)


def decode_block(length: int) -> int:
    """Return the number of keys per attention block in decoding, for rows of `length` positions."""
    return min(length, max(_DECODE_BLOCK, -(-length // _MOST_BLOCKS // 128) * 128))


def _over_blocks(
    query: jax.Array,
    read: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    limits: jax.Array,
    reach: jax.Array,
    length: int,
    block: int,
) -> _Softmax:
    """Attend with a running softmax to rows of `length` positions, block by block up to position `reach`.

    Args:
      query: [rows, kv_heads, queries, head_dim].
      read: Maps the start of a block to keys [rows, kv_heads, head_dim, block] and values [rows, kv_heads, block,
        head_dim].
      limits: int32 [rows, queries or 1], number of positions that each query sees.
      reach: int32 [], the largest limit.
      length: Positions of a row.
      block: Positions of a block.
    """
    zeros = jnp.zeros(query.shape[:-1], jnp.float32)
    nothing = (zeros + MASKED, zeros, jnp.zeros(query.shape, jnp.float32))

    def attend(index: jax.Array, carry: _Softmax) -> _Softmax:
        highest, total, mixed = carry
        start = jnp.minimum(index * block, length - block)  # the last block overlaps the one before
        at = start + jnp.arange(block)
        keys, values = read(start)
        scores = jnp.einsum("rkmd,rkds->rkms", query, keys, preferred_element_type=jnp.float32)
        visible = (at >= index * block) & (at < limits[:, None, :, None])
        scores = jnp.where(visible, scores * query.shape[-1] ** -0.5, MASKED)
        higher = jnp.maximum(highest, jnp.max(scores, axis=-1))
        weights, kept = jnp.exp(scores - higher[..., None]), jnp.exp(highest - higher)
        new = jnp.einsum("rkms,rksd->rkmd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return higher, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + new

    if block == length:
        return attend(jnp.int32(0), nothing)
    return jax.lax.fori_loop(0, -(-reach // block), attend, nothing)
