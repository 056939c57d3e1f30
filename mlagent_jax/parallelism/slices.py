"""Accelerators that a run can be planned for, without having them."""

from __future__ import annotations

import dataclasses

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

    @property
    def usable_bytes(self) -> int:
        """Return the usable memory of a device in bytes."""
        return int(self.usable_gib * GIB)


def _tpu(
    name: str, topology: str, devices: int, devices_a_host: int, usable_gib: float, peak: float, host_gib: float
) -> Slice:
    return Slice(name, "tpu", devices, devices_a_host, usable_gib, peak, host_gib, topology)


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
        Slice("h100-8", "gpu", 8, 8, 0.92 * 79.1, 989e12, 1872.0),
        Slice("h200-1", "gpu", 1, 1, 0.92 * 139.7, 989e12),
    )
}
"""Slices by cloud name. v5p names count TensorCores (two per device), the others count devices."""


def find(name: str) -> Slice:
    """Return the slice with this name.

    Raises:
      ConfigError: There is none.
    """
    if name not in SLICES:
        raise ConfigError(f"slice {name!r} is unknown; choose one of {', '.join(SLICES)}")
    return SLICES[name]


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
