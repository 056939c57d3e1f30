"""Accelerators that a run can be planned for, without having them."""

from __future__ import annotations

import dataclasses
import re

from mlagent_jax.runtime.errors import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Slice:
    """Accelerators that are used together."""

    name: str
    platform: str
    """Platform: tpu or gpu."""
    devices: int
    devices_a_host: int
    usable_gib: float
    """Device memory that a program can use: on TPU the compiler's limit, on GPU what CUDA, NCCL and fragmentation leave
    (92%; set XLA_PYTHON_CLIENT_MEM_FRACTION=0.92)."""
    peak_flops: float
    """FLOP/s per device, dense bfloat16, as the vendor states."""
    host_gib: float = 0.0
    """Memory per host, as the cloud states (ct5lp, ct5p, ct6e and a3-highgpu machines). 0: it varies."""
    topology: str = ""
    """Name of a TPU slice's topology in the compiler."""
    memory_bandwidth: float = 0.0
    """Bytes/s that a device reads of its memory, as the vendor states. 0: not known here."""
    link_bandwidth: float = 0.0
    """Bytes/s that a device sends to the others over all its links (ICI, NVLink), as stated. 0: not known."""

    @property
    def usable_bytes(self) -> int:
        """Return the usable memory of a device in bytes."""
        return int(self.usable_gib * GIB)


_TPU_BYTES = {"v5e": (8.19e11, 2e11), "v5p": (2.765e12, 6e11), "v6e": (1.6e12, 4e11)}
"""Bytes/s of memory and of links one way, of the pages of Google's documentation."""
_NVLINK = 4.5e11  # one way
_GPU_BYTES = {"h100": (3.35e12, _NVLINK), "h200": (4.8e12, _NVLINK)}


def _tpu(
    name: str, topology: str, devices: int, devices_a_host: int, usable_gib: float, peak: float, host_gib: float
) -> Slice:
    rates = _TPU_BYTES[topology.partition(":")[0]]
    return Slice(name, "tpu", devices, devices_a_host, usable_gib, peak, host_gib, topology, *rates)


SLICES = {
    each.name: each
    for each in (
        _tpu("v5e-8", "v5e:2x4", 8, 8, 15.75, 197e12, 384.0),
        _tpu("v5e-16", "v5e:4x4", 16, 4, 15.75, 197e12, 192.0),
        _tpu("v5e-32", "v5e:4x8", 32, 4, 15.75, 197e12, 192.0),
        _tpu("v5p-8", "v5p:2x2x1", 4, 4, 95.74, 459e12, 448.0),
        _tpu("v5p-16", "v5p:2x2x2", 8, 4, 95.74, 459e12, 448.0),
        _tpu("v6e-8", "v6e:2x4", 8, 8, 31.25, 918e12, 1440.0),
        _tpu("v6e-16", "v6e:4x4", 16, 4, 31.25, 918e12, 720.0),
        Slice("h100-8", "gpu", 8, 8, 0.92 * 79.1, 989e12, 1872.0, "", *_GPU_BYTES["h100"]),
        Slice("h200-1", "gpu", 1, 1, 0.92 * 139.7, 989e12, 0.0, "", *_GPU_BYTES["h200"]),
    )
}
"""Slices by cloud name. v5p names count TensorCores (two per device), the others count devices."""


GPU_SHARE = 0.92
"""Share of a GPU's memory that a program can use; see `Slice.usable_gib`."""
_GPUS = {
    "a10": (22.2, 125e12),
    "a100": (39.5, 312e12),
    "a100-80": (79.2, 312e12),
    "b200": (179.0, 2250e12),
    "h100": (79.1, 989e12),
    "h200": (139.7, 989e12),
    "l4": (22.5, 121e12),
    "l40s": (44.5, 362e12),
    "rtx3090": (23.6, 71e12),
    "rtx4090": (23.6, 165e12),
}
"""GiB as the driver shows them, and FLOP/s as the vendor states them (dense bfloat16), by kind of GPU."""
_TPUS = {"v5e": (15.75, 197e12), "v5p": (95.74, 459e12), "v6e": (31.25, 918e12)}
"""Usable GiB and FLOP/s of a chip."""
KINDS = (*_GPUS, *_TPUS)


def find(name: str) -> Slice:
    """Return the slice with this name, or devices of one host by count and kind, for example `4xH100`.

    Raises:
      ConfigError: There is none.
    """
    if name in SLICES:
        return SLICES[name]
    match = re.fullmatch(r"([1-9]\d{0,4})x([\w-]+)", name)
    kind = match[2].lower() if match else ""
    if kind in _GPUS:
        gib, flops = _GPUS[kind]
        rates = _GPU_BYTES.get(kind, (0.0, 0.0))
        return Slice(name, "gpu", int(match[1]), int(match[1]), GPU_SHARE * gib, flops, 0.0, "", *rates)
    if kind in _TPUS:
        return Slice(name, "tpu", int(match[1]), int(match[1]), *_TPUS[kind], 0.0, "", *_TPU_BYTES[kind])
    raise ConfigError(
        f"slice {name!r} is unknown; choose one of {', '.join(SLICES)}, COUNTxKIND with a kind of "
        f"{', '.join(KINDS)}, or a count with --memory_gib and --tflops"
    )


def by_hand(count: str, memory_gib: float, tflops: float) -> Slice:
    """Return devices of one host whose memory and rate a user gives.

    Args:
      count: Number of devices.
      memory_gib: Memory of one, as the driver shows it.
      tflops: Dense bfloat16 rate of one, in TFLOP/s.

    Raises:
      ConfigError: A number is impossible.
    """
    if not re.fullmatch(r"[1-9]\d{0,4}", count) or not (memory_gib > 0 and tflops > 0):
        raise ConfigError(
            f"--devices={count} --memory_gib={memory_gib:g} --tflops={tflops:g}: give a count of devices, the memory "
            "of one in GiB, and its rate in TFLOP/s, all above 0"
        )
    name = f"{count} x {memory_gib:g} GiB"
    return Slice(name, "gpu", int(count), int(count), GPU_SHARE * memory_gib, tflops * 1e12)


_PEAKS = {
    "v5 lite": 197e12,
    "v5e": 197e12,
    "v5": 459e12,
    "v6": 918e12,
    "v4": 275e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
}
"""FLOP/s by a part of the device's name, dense bfloat16, as the vendors state; the first that fits counts."""


def peak_flops(device_kind: str) -> float:
    """Return the FLOP/s of a device, dense bfloat16, by JAX's name of its kind; 0 for an unknown one, as a CPU."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), 0.0)
