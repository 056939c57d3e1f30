"""Control groups: limits over all processes of an execution together, if this host permits.

They work in version 1 (as root) and in version 2 (if the memory and pids controllers are available in a group where we
may create others). Otherwise `open_cgroups` returns None, and a sandbox does not claim the guarantees that need them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
from collections.abc import Iterator
from pathlib import Path

from environments.protocol import Limits

_PREFIX = "mlagent-"
_LEFT_BYTES = 4 << 20
"""Maximum memory left by an earlier execution in a reused group: far below any limit. The kernel frees the rest later.
"""
_SPARE_PROCESSES = 3
"""Processes in addition to the script's: the init process, the container's runner, and one that is exiting."""


class Cgroup:
    """One group, used by one execution at a time."""

    def __init__(self, memory: Path, pids: Path, cpu: Path, unified: bool) -> None:
        self._memory, self._pids, self._cpu, self._unified = memory, pids, cpu, unified
        self._oom_before = 0
        self._cpu_before = 0.0

    @property
    def directories(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((self._memory, self._pids, self._cpu)))

    def prepare(self, limits: Limits) -> None:
        """Set the limits and reset the usage of earlier executions."""
        memory_bytes = limits.memory_mb * 2**20
        if self._unified:
            (self._memory / "memory.max").write_text(str(memory_bytes))
            with contextlib.suppress(OSError):  # no swap accounting, or no swap
                (self._memory / "memory.swap.max").write_text("0")
        else:
            self._set_v1_memory(memory_bytes)
        (self._pids / "pids.max").write_text(str(limits.processes + _SPARE_PROCESSES))
        self._oom_before = self._oom_kills()
        self._cpu_before = self._cpu_used()

    def empty(self) -> bool:
        """Check that no process and almost no memory of earlier ones is left, apart from cached files.

        A script's page tables and memory files are freed some time after it.
        """
        usage, cached = ("memory.current", "file") if self._unified else ("memory.usage_in_bytes", "cache")
        stat = self._fields("memory.stat")
        left = int((self._memory / usage).read_text()) - (stat[cached] - stat["shmem"])
        return left <= _LEFT_BYTES and not any((each / "cgroup.procs").read_text() for each in self.directories)

    def add(self, pid: int) -> None:
        """Put a process, and its later children, in the group."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(str(pid))

    def cpu_seconds(self) -> float:
        """Return user and system time since `prepare`, of living and dead processes."""
        return self._cpu_used() - self._cpu_before

    def out_of_memory(self) -> bool:
        """Check whether the kernel killed a process for memory since `prepare`."""
        return self._oom_kills() > self._oom_before

    def _set_v1_memory(self, memory_bytes: int) -> None:
        # Memory may not exceed memory + swap: the order of writing depends on whether the limit rises or falls.
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        names = tuple(name for name in names if (self._memory / name).exists())
        if int((self._memory / names[0]).read_text()) < memory_bytes:
            names = names[::-1]
        for name in names:
            (self._memory / name).write_text(str(memory_bytes))

    def _oom_kills(self) -> int:
        return self._fields("memory.events" if self._unified else "memory.oom_control")["oom_kill"]

    def _fields(self, name: str) -> dict[str, int]:
        lines = (line.split() for line in (self._memory / name).read_text().splitlines())
        return {key: int(value) for key, value in lines}

    def _cpu_used(self) -> float:
        if self._unified:
            fields = dict(line.split() for line in (self._cpu / "cpu.stat").read_text().splitlines())
            return int(fields["usage_usec"]) / 1e6
        return int((self._cpu / "cpuacct.usage").read_text()) / 1e9


class Cgroups:
    """A pool of groups, reused because the kernel frees a group only when its last cached page is gone."""

    def __init__(self, bases: dict[str, Path], unified: bool) -> None:
        self._bases, self._unified = bases, unified
        self._names = itertools.count()
        self._idle: queue.SimpleQueue[Cgroup] = queue.SimpleQueue()

    @contextlib.contextmanager
    def lease(self, limits: Limits) -> Iterator[Cgroup]:
        """Yield an empty group with `limits` set.

        Raises:
          OSError: the kernel refuses.
        """
        group = self._take()
        try:
            group.prepare(limits)
            yield group
        finally:
            self._idle.put(group)

    def _take(self) -> Cgroup:
        """Return the first idle group that is empty, or a new one."""
        for _ in range(self._idle.qsize()):
            try:
                group = self._idle.get_nowait()
            except queue.Empty:
                break
            if group.empty():
                return group
            self._idle.put(group)
        return self._create()

    def close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                for directory in self._idle.get_nowait().directories:
                    with contextlib.suppress(OSError):
                        directory.rmdir()
        for base in dict.fromkeys(self._bases.values()):
            with contextlib.suppress(OSError):
                base.rmdir()

    def _create(self) -> Cgroup:
        name = str(next(self._names))
        for base in dict.fromkeys(self._bases.values()):
            (base / name).mkdir()
        return Cgroup(*(self._bases[kind] / name for kind in ("memory", "pids", "cpuacct")), unified=self._unified)


def open_cgroups() -> Cgroups | None:
    """Return groups under this process's own, or None if the host does not permit limits of memory and processes."""
    mounted = mounts()
    name = f"{_PREFIX}{os.getpid()}-{next(_SERIAL)}"
    if all(kind in mounted for kind in ("memory", "pids", "cpuacct")):
        parents = {kind: own_group(mounted[kind], kind) for kind in ("memory", "pids", "cpuacct")}
        return _try(parents, name, unified=False)
    if "unified" in mounted:
        for parent in dict.fromkeys((own_group(mounted["unified"], ""), mounted["unified"])):
            if groups := _try(dict.fromkeys(("memory", "pids", "cpuacct"), parent), name, unified=True):
                return groups
    return None


_SERIAL = itertools.count()


def _try(parents: dict[str, Path], name: str, unified: bool) -> Cgroups | None:
    bases = {kind: parent / name for kind, parent in parents.items()}
    groups = Cgroups(bases, unified)
    try:
        for parent in dict.fromkeys(parents.values()):
            _sweep(parent)
            (parent / name).mkdir()
        if unified:
            (bases["memory"] / "cgroup.subtree_control").write_text("+memory +pids")
        with groups.lease(Limits()):
            return groups
    except OSError:
        groups.close()
        return None


def _sweep(parent: Path) -> None:
    """Remove groups of dead processes; a group in use refuses."""
    for base in parent.glob(f"{_PREFIX}*"):
        pid = base.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            for directory in [*base.glob("*/"), base]:
                with contextlib.suppress(OSError):
                    directory.rmdir()


def mounts() -> dict[str, Path]:
    """Return the mount point by controller (version 1), and that of version 2 under `unified`."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        place = Path(before.split()[4])
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            found["unified"] = place
        elif kind == "cgroup":
            found |= {name: place for name in options.split(",")}
    return found


def own_group(mount: Path, controller: str) -> Path:
    """Return this process's own group under `mount`, or the top if the group is not visible (as in a container)."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            directory = mount / path.lstrip("/")
            return directory if directory.is_dir() else mount
    return mount
