"""Shardings from logical axis names, through a table.

Parameters and activations name their axes by meaning ("mlp", "batch"); only a table knows the mesh. The trainer uses
`DEFAULT_RULES`, the sampler its own table (`sampling.layout`). For another layout, a config changes rows
(`config.mesh.rules`, `config.sampling.rules`); no model code changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mlagent_jax.parallelism.mesh import AXES

LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Mesh axes, in order, that shard each logical axis; hashable, so that it can be a static argument."""

    table: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, table: Mapping[str, Sequence[str]]) -> Rules:
        """Return rules from a mapping such as `{"batch": ("data", "fsdp"), "mlp": ("tensor",)}`."""
        return cls(tuple((name, tuple(axes)) for name, axes in table.items()))

    def changed(self, rows: str) -> Rules:
        """Replace rows of the table: "LOGICAL=MESH+MESH,...", e.g. "embed=data+fsdp,vocab=" (the latter replicated).

        Raises:
          ValueError: A row that cannot be parsed or may not change, or two axes of one array on one mesh axis.
        """
        table, seen = dict(self.table), set()
        for row in rows.split(",") if rows else ():
            logical, equals, text = row.partition("=")
            axes = tuple(text.split("+")) if text else ()
            if not equals or logical not in CHANGEABLE or logical in seen:
                raise ValueError(
                    f"the sharding rule {row!r} is not valid: write LOGICAL=MESH+MESH, once for each of "
                    f"{', '.join(CHANGEABLE)}; for example embed=data+fsdp, or vocab= to replicate"
                )
            if set(axes) - set(AXES) or len(axes) > len(set(axes)):
                raise ValueError(f"the sharding rule {row!r} splits over {text!r}: use {', '.join(AXES)}, each once")
            seen.add(logical)
            table[logical] = axes
        if "batch" in seen and table["mlp_batch"]:  # () in a sampler's table: whole there
            table["mlp_batch"] = table["vocab_batch"] = table["batch"]
        for together in TOGETHER:
            flat = [axis for logical in together for axis in table[logical]]
            if twice := sorted({axis for axis in flat if flat.count(axis) > 1}):
                raise ValueError(
                    f"the sharding rules {rows} would use the mesh axis {' and '.join(twice)} twice in "
                    f"arrays with axes {together}: change one of their rows"
                )
        return Rules.of(table)

    def mesh_axes(self, logical: str | None, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
        """Return the axes of `mesh` larger than 1 that shard `logical`.

        Raises:
          ValueError: A logical axis that the table does not have.
        """
        if logical is None:
            return ()
        table = dict(self.table)
        if logical not in table:
            raise ValueError(f"logical axis {logical!r} has no rule: known are {', '.join(table)}")
        return tuple(axis for axis in table[logical] if mesh.shape.get(axis, 1) > 1)

    def spec(
        self, axes: LogicalAxes, mesh: Mesh | AbstractMesh, shape: Sequence[int] | None = None, name: str = "array"
    ) -> PartitionSpec:
        """Return the partition of an array with these logical axes; `shape` and `name` are for the check of
        divisibility.

        Raises:
          ValueError: The mesh does not divide a dimension (the message names both), or a mesh axis is used twice.
        """
        groups = [self.mesh_axes(axis, mesh) for axis in axes]
        flat = [axis for group in groups for axis in group]
        if len(flat) != len(set(flat)):
            raise ValueError(f"{name} with axes {axes} would use a mesh axis twice ({flat}): change its sharding rules")
        for size, logical, group in zip(shape or (), axes, groups, strict=False):
            split = math.prod(mesh.shape[axis] for axis in group)
            if size % split:
                mesh_text = ", ".join(f"{axis}={mesh.shape[axis]}" for axis in group)
                raise ValueError(
                    f"{name}: dimension {logical!r} of size {size} is not divisible by the mesh axes {mesh_text}: "
                    "choose another mesh or change the sharding rules"
                )
        return PartitionSpec(*(None if not group else group[0] if len(group) == 1 else group for group in groups))


DEFAULT_RULES = Rules.of(
    {
        # activations; rows of those that are split by mlp or by vocabulary have names of their own
        "batch": ("data", "fsdp"),
        "mlp_batch": ("data", "fsdp"),
        "vocab_batch": ("data", "fsdp"),
        "slots": ("data", "fsdp"),
        "draws": ("data", "fsdp"),
        "time": (),
        "hidden": (),
        # parameters; heads, mlp and vocab name activations too
        "layers": (),
        "embed": ("fsdp",),
        "vocab": ("tensor",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "head_dim": (),
        "mlp": ("tensor",),
    }
)

CHANGEABLE = ("batch", "slots", "embed", "vocab", "heads", "kv_heads", "mlp")
"""Rows that a config may change; all other axes are replicated."""

TOGETHER: tuple[tuple[str, ...], ...] = (
    ("batch", "time", "hidden"),
    ("mlp_batch", "time", "mlp"),
    ("vocab_batch", "time", "vocab"),
    *(("batch", "time", axis, "head_dim") for axis in ("heads", "kv_heads")),
    *(("layers", "embed", axis) for axis in ("vocab", "mlp")),
    *(("layers", "embed", axis, "head_dim") for axis in ("heads", "kv_heads")),
    ("hidden", "vocab"),
    ("slots", "time", "kv_heads", "head_dim"),
)
"""Logical axes that occur together in one array, which may use a mesh axis once."""


def is_logical_axes(node: Any) -> bool:
    """Return whether a tree node is one array's logical axes (a tuple of names), and so a leaf."""
    return isinstance(node, tuple) and all(axis is None or isinstance(axis, str) for axis in node)


def shardings(logical_tree: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES, shapes: Any | None = None) -> Any:
    """Return a tree of `NamedSharding` for a tree of logical axes.

    Args:
      logical_tree: A pytree whose leaves are tuples of logical axis names, one per axis.
      mesh: The mesh to place on.
      rules: The table.
      shapes: The same tree with a `.shape` per leaf, to check divisibility here instead of in the compiler.

    Raises:
      ValueError: As `Rules.spec`, with the parameter's path.
    """

    def one(path: tuple[Any, ...], axes: LogicalAxes, array: Any = None) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, rules.spec(axes, mesh, None if array is None else array.shape, name))

    rest = () if shapes is None else (shapes,)
    return jax.tree_util.tree_map_with_path(one, logical_tree, *rest, is_leaf=is_logical_axes)


def constrain(x: jax.Array, axes: LogicalAxes, rules: Rules, name: str = "activation") -> jax.Array:
    """Return `x` with its layout fixed on the mesh of `jax.set_mesh`; unchanged without a mesh or with one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec(axes, mesh, x.shape, name))


def shard_count(logical: str, rules: Rules) -> int:
    """Return the number of shards of a logical axis on the mesh of `jax.set_mesh`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[axis] for axis in rules.mesh_axes(logical, mesh))
