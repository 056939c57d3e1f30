"""Where arrays live: the device mesh, the table from logical axis names to its axes; which processes share it."""

from mlagent_jax.parallelism.mesh import AXES, abstract_mesh, make_mesh
from mlagent_jax.parallelism.sharding import (
    DEFAULT_RULES,
    LogicalAxes,
    Rules,
    constrain,
    is_logical_axes,
    parts,
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
    "parts",
    "shardings",
]
