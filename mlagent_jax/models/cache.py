"""The key-value cache of the sampler, and the two steps over it: `prefill` of prompts and `decode_step` of one token a
slot.

A slot is a row of the cache that holds one sequence; slots stand at positions of their own. Keys and values are one
array a layer: a stacked array, carried through a loop, would be copied by XLA at each token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mlagent_jax.models import rope
from mlagent_jax.models.attention import MASKED, causal_attention
from mlagent_jax.models.decoder import Graph, Params, run_layers
from mlagent_jax.parallelism import constrain

CACHE_AXES = ("slots", "kv_heads", "time", "head_dim")


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
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]

    def write(held: list[jax.Array], new: jax.Array) -> list[jax.Array]:
        time = tokens.shape[1]
        return [layer.at[slots, :, :time].set(new[index], mode="drop") for index, layer in enumerate(held)]

    return last, Cache(write(cache.keys, keys), write(cache.values, values))


def decode_step(
    graph: Graph, params: Params, tokens: jax.Array, positions: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """One token for every slot: write it to the cache, attend to all up to it.

    Args:
        graph: The model.
        params: From `layer_params`.
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
    for index, layer in enumerate(params["layers"]):

        def attend(
            query: jax.Array, key: jax.Array, value: jax.Array, index: int = index
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            held = _append(keys[index], key[:, 0], positions), _append(values[index], value[:, 0], positions)
            return _attend_to_cache(query[:, 0], *held, positions)[:, None], held

        x, (keys[index], values[index]) = graph.bind("layers", layer)(x, cos_sin, attend, graph.rules)
    return graph.bind("final_norm", params["final_norm"])(x)[:, 0], Cache(keys, values)


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
