"""Where the sampler's arrays live on a mesh: weights are split and stay where they are, slots take what is left.

Training gathers each layer's weights for many tokens at once. Decoding reads every weight for one token a slot, so a
gather would cost far more than the product. Here each weight is split by heads, by MLP or by vocabulary over as many
devices as divide it and is never gathered; activations of a few slots move instead. A new policy version is laid out
anew once (`sampling.weights`).

    heads, kv_heads   the mesh axes, tensor first, whose product divides the key-value heads
    slots, batch      the other axes
    draws             all axes, where they divide the slots: each device draws for its share
    mlp, vocab        all axes whose product divides them; activations along them are whole by slot
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
"""Devices along `tensor` are neighbours: what meets in every layer is split there first."""


def sampling_rules(model: ModelConfig, mesh: Mesh | AbstractMesh, training: Rules, rows: str = "") -> Rules:
    """Return the sampler's table of sharding rules.

    Args:
      model: shape of the policy.
      mesh: the run's.
      training: the trainer's table; what no weight or slot depends on is taken from it.
      rows: rows to change, as in `Rules.changed`.

    Raises:
      ValueError: `rows` cannot be read, or does not go with the others.
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
    """Return the graph whose programs compute on the sampler's layout; without a mesh of several devices, `graph`.

    Raises:
      ValueError: as `sampling_rules`.
    """
    if mesh is None or mesh.size == 1:
        return graph
    return dataclasses.replace(graph, rules=sampling_rules(graph.config, mesh, graph.rules, rows))


def mesh_of(params: Any) -> Mesh | None:
    """Return the mesh that a tree of arrays is laid out on; None where they are on one device each."""
    sharding = jax.tree.leaves(params)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def placement(graph: Graph, mesh: Mesh | AbstractMesh) -> Any:
    """Return the sharding of every parameter, layers stacked, in a tree like the parameters'.

    Raises:
      ValueError: the mesh does not divide a dimension that a rule splits.
    """
    _, shapes, axes = describe(graph.config, lora=graph.lora)
    return shardings(axes, mesh, graph.rules, shapes)


def _dividing(size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Return the mesh axes, in the mesh's order, over which an axis of this size can be split."""
    chosen, product = [], 1
    for axis in _NEAREST_FIRST:
        if size % (product * mesh.shape[axis]) == 0:
            chosen.append(axis)
            product *= mesh.shape[axis]
    return tuple(axis for axis in AXES if axis in chosen)
