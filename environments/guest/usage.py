"""Resource usage of an execution's processes, from the /proc and the control group of its own namespaces."""

from __future__ import annotations

import os

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


def full(path: str) -> str | None:
    """Return which resource of the file system at `path` is exhausted: "disk", "inodes" or None."""
    room = os.statvfs(path)
    return "disk" if room.f_bavail == 0 else "inodes" if room.f_favail == 0 else None


def processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def cpu_seconds() -> float:
    """Return user and system time of all isolated processes and of the dead ones that were waited for."""
    ticks = 0
    for pid in processes():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # ended after the listing
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def memory_bytes(enough: int) -> int:
    """Return resident memory of all processes, shared pages counted once, or an upper bound below `enough`."""
    coarse = 0
    for pid in processes():
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                coarse += int(file.read().split()[1]) * _PAGE
        except OSError:
            continue
    if coarse <= enough:
        return coarse
    exact = 0
    for pid in processes():
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                exact += next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) * 1024
        except (OSError, StopIteration):
            continue
    return exact


def group_cpu_seconds() -> float | None:
    """Return user and system time of everything that ever ran in this container, or None if no file holds it."""
    if (text := _read("/sys/fs/cgroup/cpu.stat")) is not None:
        return int(dict(line.split() for line in text.splitlines())["usage_usec"]) / 1e6
    if (text := _read("/sys/fs/cgroup/cpuacct/cpuacct.usage")) is not None:
        return int(text) / 1e9
    return None


def group_out_of_memory() -> bool:
    """Check whether the kernel killed a process of this container for memory."""
    for name in ("memory.events", "memory/memory.oom_control"):
        if (text := _read(f"/sys/fs/cgroup/{name}")) is not None:
            return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0)) > 0
    return False


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return None
