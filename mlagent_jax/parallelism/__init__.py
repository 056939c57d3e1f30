"""Placement of arrays: the device mesh, and the table from logical axis names to mesh axes."""

from mlagent_jax.parallelism.mesh import AXES, abstract_mesh, make_mesh
from mlagent_jax.parallelism.sharding import (
    DEFAULT_RULES,
    LogicalAxes,
    Rules,
    constrain,
    is_logical_axes,
    shard_count,
    shardings,
)

__all__ = [
    "AXES",
    "DEFAULT_RULES",
    "LogicalAxes",
    "Rules",
    "abstract_mesh",
    "constrain",
    "is_logical_axes",
    "make_mesh",
    "shard_count",
    "shardings",
]
