"""Properties of the worker's host and process: usable resources, name, version, whether the parent lives."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from environments.protocol import VERSION
from environments.queue.base import Capabilities, WorkerReport
from environments.sandbox.bubblewrap import cgroups


def usable_cores() -> int:
    """Return the number of cores that this process may use: its cpuset within its control group's quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _own_groups("cpu"):
        said = (
            _read(folder / "cpu.max") or f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        )
        quota, _, period = said.partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)


def usable_memory_mb() -> int:
    """Return the memory that this process may use, in MB: the host's, limited by its control group."""
    limits = [psutil.virtual_memory().total]
    for folder in _own_groups("memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        limits += [int(limit)] if limit.isdecimal() else []
    return min(limits) >> 20


def host_capabilities(
    image: str, guarantees: frozenset[str], cores: int = 0, memory_mb: int = 0, gpus: int = 0
) -> Capabilities:
    """Return the capabilities of one execution: by default all resources of this process.

    The slots share these, so choose the number of slots to match.
    """
    return Capabilities(
        cores=cores or usable_cores(),
        memory_mb=memory_mb or usable_memory_mb(),
        gpus=gpus,
        image=image,
        guarantees=guarantees,
    )


def worker_name() -> str:
    """Return a name that no other worker process has or had."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def package_version() -> str:
    """Return the version of this package, with that of the protocol."""
    try:
        installed = importlib.metadata.version("mlagent-jax")
    except importlib.metadata.PackageNotFoundError:
        installed = "checkout"
    return f"{installed} (protocol {VERSION})"


def report_of(slots: int, capabilities: Capabilities, health: str, completed: int = 0, failed: int = 0) -> WorkerReport:
    """Return this process's report."""
    host, pid, version = socket.gethostname(), os.getpid(), package_version()
    return WorkerReport(host, pid, version, slots, capabilities, health[:500], completed, failed)


class Parent:
    """Another process, also identified by its start time, so that a reused pid is not mistaken for it."""

    def __init__(self, pid: int) -> None:
        """Find the process.

        Raises:
          ValueError: no such process runs.
        """
        try:
            self._process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            raise ValueError(f"parent_pid is {pid}, and no such process runs") from None
        self.pid = pid

    def is_running(self) -> bool:
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def _own_groups(controller: str) -> Iterator[Path]:
    """Yield folders of this process's control groups (versions 2 and 1) and of their parents, which also limit it."""
    mounted: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        mounted = cgroups.mounts()
    for mount, name in ((mounted.get("unified"), ""), (mounted.get(controller), controller)):
        if mount is not None:
            own = cgroups.own_group(mount, name)
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
