"""Layout of the sampler's arrays on a mesh: weights are sharded and never gathered, slots use the remaining axes.

Training gathers each layer's weights for many tokens at once. Decoding reads every weight for one token per slot, so a
gather would cost far more than the product. Here each weight is sharded by heads, MLP or vocabulary over as many
devices as divide it; the activations of a few slots move instead. Each policy version is resharded once
(`sampling.weights`).

    heads, kv_heads   the mesh axes, tensor first, whose product divides the key-value heads
    slots, batch      the other axes
    draws             all axes, if they divide the slots: each device draws for its share
    mlp, vocab        all axes whose product divides them; activations along them are not sharded by slot
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from mlagent_jax.models import Graph, ModelConfig
from mlagent_jax.models.decoder import describe
from mlagent_jax.parallelism import Rules, shardings
from mlagent_jax.parallelism.mesh import AXES

_NEAREST_FIRST = ("tensor", "fsdp", "data")
"""Mesh axes in order of use. Devices along `tensor` are neighbours, so they get the traffic of every layer."""


def sampling_rules(model: ModelConfig, mesh: Mesh | AbstractMesh, training: Rules, rows: str = "") -> Rules:
    """Return the sampler's table of sharding rules.

    Args:
      model: config of the policy.
      mesh: mesh of the run.
      training: the trainer's table, used for all axes that neither weights nor slots have.
      rows: rows to change, as in `Rules.changed`.

    Raises:
      ValueError: `rows` cannot be parsed, or conflicts with other rows.
    """
    heads = _dividing(model.num_kv_heads, mesh)
    rest = tuple(axis for axis in AXES if axis not in heads)
    table = dict(training.table) | {
        "batch": rest,
        "slots": rest,
        "draws": AXES,
        "embed": (),
        "heads": heads,
        "kv_heads": heads,
        "mlp": _dividing(model.intermediate_size, mesh),
        "mlp_batch": (),
        "vocab": _dividing(model.vocab_size, mesh),
        "vocab_batch": (),
    }
    return Rules.of(table).changed(rows)


def for_sampling(graph: Graph, mesh: Mesh | AbstractMesh | None, rows: str = "") -> Graph:
    """Return the graph whose programs use the sampler's layout; `graph` itself if the mesh has one device.

    Raises:
      ValueError: as `sampling_rules`.
    """
    if mesh is None or mesh.size == 1:
        return graph
    return dataclasses.replace(graph, rules=sampling_rules(graph.config, mesh, graph.rules, rows))


def mesh_of(params: Any) -> Mesh | None:
    """Return the mesh of a tree of arrays; None if they are not sharded over a mesh."""
    sharding = jax.tree.leaves(params)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def placement(graph: Graph, mesh: Mesh | AbstractMesh) -> Any:
    """Return the sharding of every parameter, in a tree like that of the parameters with stacked layers.

    Raises:
      ValueError: the mesh does not divide a dimension that a rule shards.
    """
    _, shapes, axes = describe(graph.config, lora=graph.lora)
    return shardings(axes, mesh, graph.rules, shapes)


def _dividing(size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Return the mesh axes, in the mesh's order, over which an axis of this size can be sharded."""
    chosen, product = [], 1
    for axis in _NEAREST_FIRST:
        if size % (product * mesh.shape[axis]) == 0:
            chosen.append(axis)
            product *= mesh.shape[axis]
    return tuple(axis for axis in AXES if axis in chosen)
