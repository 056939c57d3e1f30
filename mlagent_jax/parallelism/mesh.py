"""The device mesh of a run: `data` (replicas), `fsdp` (sharded parameters, gathered for use), `tensor` (sharded
layers)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh over `devices` (default: all of every process), e.g. `make_mesh({"fsdp": -1, "tensor": 2})`.

    A missing axis has size 1; one axis may be -1, "the remaining devices". Activate the mesh with `jax.set_mesh`.

    Raises:
      ValueError: An unknown axis, a size below 1, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(shape, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def abstract_mesh(shape: Mapping[str, int], devices: int) -> AbstractMesh:
    """Return the mesh of `make_mesh` for that many devices, without devices: for shapes and shardings.

    Raises:
      ValueError: As `make_mesh`.
    """
    sizes = mesh_sizes(shape, devices)
    return AbstractMesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * len(AXES))


def mesh_sizes(shape: Mapping[str, int], devices: int) -> dict[str, int]:
    """Return the number of devices along each axis of `AXES`, with product `devices`; see `make_mesh`."""
    unknown = set(shape) - set(AXES)
    if unknown:
        raise ValueError(f"mesh axes {sorted(unknown)} are unknown: use {', '.join(AXES)}")
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = {axis: size for axis, size in sizes.items() if size < 1 and size != -1}
    if bad or len(free) > 1:
        raise ValueError(f"mesh sizes {dict(shape)} must be positive, with at most one -1 for 'what remains'")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and devices % fixed == 0:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise ValueError(f"a mesh of {dict(shape)} does not fit {devices} devices: its sizes must multiply to that")
    return sizes
