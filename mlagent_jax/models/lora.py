"""Low-rank adapters (LoRA, Hu et al. 2021) as a pytree separate from the base parameters.

    W x  becomes  W x + alpha / rank * up(down(x))          down: [in, rank], up: [rank, out], initially zero

The base is never modified: with its own graph it is the reference of the adapted policy, at no extra memory. In the
tree of `Params` an adapter sits inside its linear map (`layers/attention/query/adapter/down`), so that
`models.hidden_states` and the sampler accept the `join` of base and adapters, with a graph from `adapted`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mlagent_jax.models.config import LoRA
from mlagent_jax.models.decoder import Graph, Params, describe
from mlagent_jax.models.layers import ADAPTER, Decoder
from mlagent_jax.parallelism import shardings


def adapted(graph: Graph, lora: LoRA) -> Graph:
    """Return the graph of the same model with adapters, for the `join` of base and adapters.

    Raises:
      ValueError: A target that this model does not have, by name.
    """
    if "head" in lora.targets and graph.config.tie_word_embeddings:
        raise ValueError("lora target 'head' is tied to the embedding in this model: leave it out of the targets")
    return dataclasses.replace(graph, lora=lora, definitions=describe(graph.config, lora=lora)[0])


def abstract(graph: Graph, mesh: Mesh | None = None) -> Params:
    """Return shapes (and shardings, given a mesh) of the adapters of an `adapted` graph; allocate nothing."""
    _, shapes, axes = describe(graph.config, lora=graph.lora)
    shapes, axes = adapters_of(shapes), adapters_of(axes)
    if mesh is None:
        return shapes
    placed = shardings(axes, mesh, graph.rules, shapes)
    return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, placed)


def create(graph: Graph, key: jax.Array, mesh: Mesh | None = None) -> Params:
    """Create float32 adapters of an `adapted` graph; with them the model initially computes the same as its base."""
    target = abstract(graph, mesh)

    def initialise(key: jax.Array) -> Params:
        model = Decoder(graph.config, nnx.Rngs(params=key), jnp.float32, graph.lora)
        modules = {part: getattr(model, part) for part in target}
        return adapters_of({part: nnx.to_pure_dict(nnx.split(module)[1]) for part, module in modules.items()})

    placed = None if mesh is None else jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(initialise, out_shardings=placed)(key)


def adapters_of(params: Mapping[str, Any]) -> Params:
    """Return only the adapters of a tree that holds both; branches without any are left out."""
    adapters: Params = {}
    for name, value in params.items():
        if name == ADAPTER:
            adapters[name] = value
        elif isinstance(value, Mapping) and (inner := adapters_of(value)):
            adapters[name] = inner
    return adapters


def join(base: Params, adapters: Params) -> Params:
    """Join both into one tree; no array is copied."""
    joined = dict(base)
    for name, value in adapters.items():
        joined[name] = join(base[name], value) if name in base else value
    return joined


def merge(base: Params, adapters: Params, lora: LoRA) -> Params:
    """Return the base with the adapters added to its kernels, in float32 and then cast to the kernel's dtype."""
    merged = dict(base)
    for name, value in adapters.items():
        if name != ADAPTER:
            merged[name] = merge(base[name], value, lora)
    if ADAPTER in adapters:
        merged["kernel"] = _add(base["kernel"], adapters[ADAPTER], lora.scale)
    return merged


@jax.jit(static_argnums=2)
def _add(kernel: jax.Array, adapter: Params, scale: float) -> jax.Array:
    """Add up @ down to a kernel [..., *in, *out]; down [..., *in, rank], up [..., rank, *out]; `...` is the layer
    axis."""
    down, up = adapter["down"], adapter["up"]
    stacked = down.ndim + up.ndim - 2 - kernel.ndim  # leading layer axes: 1 or 0
    batch, ranks = tuple(range(stacked)), ((down.ndim - 1,), (stacked,))
    correction = jax.lax.dot_general(down, up, (ranks, (batch, batch)), precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * correction).astype(kernel.dtype)


def concatenate(first: Params, second: Params) -> Params:
    """Concatenate the ranks of two adapters: corrections add up (at the same scale, so alpha adds up too)."""

    def both(path: tuple[jax.tree_util.DictKey, ...], one: jax.Array, other: jax.Array) -> jax.Array:
        rank_of_up = 1 if path[0].key == "layers" else 0  # after the axis of the layers
        return jnp.concatenate((one, other), axis=-1 if path[-1].key == "down" else rank_of_up)

    return jax.tree_util.tree_map_with_path(both, first, second)
