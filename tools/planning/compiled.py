"""One program compiled ahead of time: what it takes, and what it must not do."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from mlagent_jax.models.decoder import CHUNK_ELEMENTS
from mlagent_jax.parallelism import make_mesh
from mlagent_jax.parallelism.slices import Slice
from mlagent_jax.runtime.errors import ConfigError
from tools.planning import flops, hlo, programs
from tools.planning.blueprint import Blueprint, bytes_a_device, draw, host_bytes_a_device
from tools.planning.programs import Program

_OUT_OF_MEMORY = re.compile(
    r"Ran out of memory.*?([\d.]+)([KMG])\)? (?:of|exceeds available HBM \()\s*([\d.]+)([KMG])", re.S
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program's record; bytes are of one device, FLOPs of all together."""

    program: str
    shape: str
    peak_bytes: int
    """Arguments, results and temporaries at the worst moment; or what the compiler says it takes and does not have."""
    beside_bytes: int
    """What the stage holds meanwhile and the program does not see."""
    argument_bytes: int
    temporary_bytes: int
    host_bytes: int
    """Of the host's memory, a device's share; 0 where the compiler does not tell the two apart (CPU)."""
    fits: bool
    flops: int
    collectives: tuple[hlo.Collective, ...]
    largest: str
    """The largest temporary."""
    largest_bytes: int
    faults: tuple[str, ...]
    """What it must not do and does."""


def devices_of(slice_: Slice, simulated: bool) -> list[Any]:
    """A slice's devices, none of them there: of the TPU compiler, or simulated on the CPU.

    Raises:
      ConfigError: they cannot be had here; the message says how.
    """
    if simulated:
        devices = jax.devices("cpu")
        if len(devices) < slice_.devices:
            raise ConfigError(
                f"{len(devices)} simulated devices, {slice_.name} has {slice_.devices}: set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={slice_.devices}"
            )
        return devices[: slice_.devices]
    if slice_.platform != "tpu":
        raise ConfigError(f"{slice_.name}: only TPU programs compile without the device; add --simulate")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=slice_.topology).devices)
    except Exception as error:  # whatever a plug-in that is not there, or cannot start, raises
        raise ConfigError(
            f"the TPU compiler cannot be had ({error}): `pip install --no-deps --target=DIR libtpu`, and set "
            "TPU_LIBRARY_PATH=DIR/libtpu/libtpu.so"
        ) from error


def place(blueprint: Blueprint, slice_: Slice, devices: list[Any], simulated: bool) -> Blueprint:
    """The same blueprint on a mesh of these devices."""
    mesh = make_mesh(dict(blueprint.mesh.shape), devices)
    return draw(blueprint.config, blueprint.graph.config, mesh, "cpu" if simulated else slice_.platform)


def compile_program(name: str, blueprint: Blueprint, slice_: Slice) -> Compiled:
    """Compile one of the programs, measure, check.

    Raises:
      ConfigError: the mesh does not divide a batch, or it does not compile for another reason than memory.
    """
    program = programs.make(name, blueprint)
    with jax.set_mesh(blueprint.mesh):
        operations = _count_operations(name, blueprint)
        try:
            executable = program.step.lower(*program.arguments, **program.static).compile()
        except jax.errors.JaxRuntimeError as error:
            return _too_large(program, operations, str(error))
    memory = executable.memory_analysis()
    found = hlo.instructions(executable.as_text())
    largest = hlo.largest(found)
    host = memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes
    peak = memory.peak_memory_in_bytes - host  # which the compiler's figure counts too
    if blueprint.mesh.devices.flat[0].platform == "cpu":  # where it counts arguments alone
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = memory.argument_size_in_bytes + new + memory.temp_size_in_bytes
    return Compiled(
        program=program.name,
        shape=program.shape,
        peak_bytes=peak,
        beside_bytes=program.beside_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        host_bytes=host,
        fits=peak + program.beside_bytes <= slice_.usable_bytes,
        flops=operations,
        collectives=tuple(hlo.collectives(found)),
        largest=str(largest),
        largest_bytes=largest.bytes,
        faults=tuple(_faults(program, blueprint, found)),
    )


def _count_operations(name: str, blueprint: Blueprint) -> int:
    """With the xla kernel: what a fused one computes is not to be seen in its jaxpr."""
    plain = dataclasses.replace(blueprint, graph=dataclasses.replace(blueprint.graph, attention="xla"))
    program = programs.make(name, plain)
    return flops.count(program.step.trace(*program.arguments, **program.static).jaxpr)


def _too_large(program: Program, operations: int, message: str) -> Compiled:
    """The record of a program that the compiler found no room for.

    Raises:
      ConfigError: it failed for another reason.
    """
    match = _OUT_OF_MEMORY.search(message)
    if match is None:
        raise ConfigError(f"{program.name} does not compile: {message[:2000]}")
    # The message counts temporaries; arguments, most of which results reuse, come on top.
    arguments = bytes_a_device(program.arrays)
    peak = int(float(match[1]) * _UNITS[match[2]]) + arguments
    return Compiled(
        program=program.name,
        shape=program.shape,
        peak_bytes=peak,
        beside_bytes=program.beside_bytes,
        argument_bytes=arguments,
        temporary_bytes=peak - arguments,
        host_bytes=host_bytes_a_device(program.arrays),
        fits=False,
        flops=operations,
        collectives=(),
        largest="",
        largest_bytes=0,
        faults=(),
    )


def _faults(program: Program, blueprint: Blueprint, found: list[hlo.Instruction]) -> list[str]:
    """A layer's parameters are to be gathered one layer at a time, and logits made some positions at a time."""
    gathered = _gathered_shapes(blueprint)
    faults = [f"gathers all layers of a parameter at once: {array}" for array in hlo.gathers_of(found, gathered)]
    if program.time > 1:
        rows = max(1, program.rows // blueprint.row_shards)
        vocab = blueprint.graph.config.vocab_size
        for size in {vocab, vocab // blueprint.parts("vocab")}:
            if rows * program.time * size <= CHUNK_ELEMENTS:  # small enough to be one chunk
                continue
            arrays = hlo.with_vocabulary(found, rows * program.time, size, blueprint.graph.config.hidden_size)
            faults += [f"makes the whole of [batch, time, vocab]: {array}" for array in arrays]
    return faults


def _gathered_shapes(blueprint: Blueprint) -> set[tuple[int, ...]]:
    """Of the stacked matrices, what one device would hold if it gathered their axis `embed`."""
    shapes = set()
    cutting = set(blueprint.graph.rules.mesh_axes("embed", blueprint.mesh))
    for leaf in jax.tree.leaves(blueprint.base["layers"]):
        if len(leaf.shape) < 3:
            continue
        local = leaf.sharding.shard_shape(leaf.shape)
        spec = (*leaf.sharding.spec, *(None,) * (len(leaf.shape) - len(leaf.sharding.spec)))
        split = [bool(cutting & set(part if isinstance(part, tuple) else (part,))) for part in spec]
        if any(split):
            shapes.add(tuple(full if cut else own for full, own, cut in zip(leaf.shape, local, split, strict=True)))
    return shapes
