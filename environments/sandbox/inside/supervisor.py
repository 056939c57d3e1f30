"""One execution in the warm sandbox: build the wall, run the script behind it, bring back what it left.

`zygote` forks a process for every execution, which calls `supervise` and becomes three:

    supervisor   trusted; keeps the fresh namespaces' capabilities; not visible from behind the wall
    init         pid 1 of the fresh pid namespace; no capabilities; reaps orphans; its death kills everything at once
    script       the untrusted one

The host holds the other end of `channel` (SOCK_SEQPACKET, JSON) and drives this sequence:

    init -> host        {"ready": true}; the kernel attaches init's process id, so that the host can put it in a cgroup
    host -> supervisor  {"go": true}: let init start the script
    host -> supervisor  {"kill": reason}, or the channel's end: kill everything
    supervisor -> host  {"status": ..., "wall_seconds": ..., ...}, once nothing is left and the workspace is packed
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from . import kernel, script, transfer

UID = 1000
"""Of the script, inside."""
_SCRATCH = "/run"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")
_INTERVAL_SECONDS = 0.025
_ALLOWANCE = 2
"""Processes beside the script's own that count against its limit: init, and one on its way out."""


def supervise(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Carry out `request` in this process and leave.

    Args:
      request: `script`, `seed`, `data` (name in the store, or None), `limits` (as `protocol.Limits`), `workspace_bytes`
        (what is restored), `watch_memory` (no cgroup does it).
      descriptors: channel, standard output, standard error, the packed workspace, where to pack it afterwards.
    """
    channel = socket.socket(fileno=descriptors[0])
    output, error, incoming, outgoing = descriptors[1:]
    try:
        result = _execute(request, channel, output, error, incoming, outgoing)
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is ours, and the host must hear of it
        result = {"failure": f"{type(failure).__name__}: {failure}"}
    channel.send(json.dumps(result).encode())
    os._exit(0)


def _execute(
    request: dict[str, Any], channel: socket.socket, output: int, error: int, incoming: int, outgoing: int
) -> dict[str, Any]:
    limits = request["limits"]
    room = limits["disk_mb"] * 2**20 + request["workspace_bytes"]
    _enter_namespaces(room, request["data"])
    skip = frozenset({"data"} if request["data"] else ())
    with os.fdopen(incoming, "rb") as stream:
        transfer.unpack(stream, script.WORKSPACE, room, keep=skip)
    status_reader, status_writer = os.pipe()
    start_reader, start_writer = os.pipe()
    init = os.fork()
    if init == 0:
        for descriptor in (status_reader, start_writer, outgoing):
            os.close(descriptor)
        _init(request, channel, output, error, start_reader, status_writer)
    for descriptor in (output, error, start_reader, status_writer):
        os.close(descriptor)
    result = _watch(init, channel, start_writer, status_reader, limits, request["watch_memory"])
    usage = os.statvfs(_SCRATCH_VIEW)
    result["full"] = "disk" if usage.f_bavail == 0 else "inodes" if usage.f_favail == 0 else None
    with os.fdopen(outgoing, "wb") as stream:
        result["refused"] = transfer.pack(script.WORKSPACE, stream, room, skip=skip)
    return result


_SCRATCH_VIEW = script.WORKSPACE
"""Any path on the one bounded file system that workspace, /tmp and /dev/shm share."""


def _enter_namespaces(room: int, data: str | None) -> None:
    """Fresh namespaces, and in them a private view of the warm sandbox's files."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEW_NAMESPACES)
    kernel.map_identity(UID, UID, outer_uid, outer_gid)
    kernel.raise_loopback()
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # One file system for all that can be written, so that one size and one inode count bound it.
    kernel.mount("scratch", _SCRATCH, "tmpfs", safe, f"size={room},nr_inodes={transfer.MAX_FILES},mode=0755")
    for name, place in (("workspace", script.WORKSPACE), ("tmp", "/tmp"), ("shm", "/dev/shm")):  # noqa: S108
        source = f"{_SCRATCH}/{name}"
        os.mkdir(source)
        os.chmod(source, 0o755 if name == "workspace" else 0o1777)
        if name == "shm":
            os.makedirs(place, exist_ok=True)
        kernel.mount(source, place, None, kernel.MS_BIND)
    if data:
        os.mkdir(f"{script.WORKSPACE}/data")
        kernel.mount(f"/store/{data}", f"{script.WORKSPACE}/data", None, kernel.MS_BIND)
        kernel.make_read_only(f"{script.WORKSPACE}/data")
    # What belongs to the warm sandbox as a whole, and so to other executions, is covered or closed.
    nothing = "size=4k,nr_inodes=1,mode=0555"
    for place in (_SCRATCH, "/store", "/dev/pts"):
        kernel.mount("nothing", place, "tmpfs", safe | kernel.MS_RDONLY, nothing)
    kernel.make_read_only("/dev")


def _init(
    request: dict[str, Any], channel: socket.socket, output: int, error: int, start_reader: int, status_writer: int
) -> NoReturn:
    """Pid 1: finish the wall from inside, fork the script, reap until it ends."""
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")  # no way to capabilities of any kind
    kernel.drop_privileges()
    kernel.filter_system_calls()
    kernel.set_dumpable(False)
    channel.send(b'{"ready": true}')
    channel.close()
    if not os.read(start_reader, 1):
        os._exit(1)
    child = os.fork()
    if child == 0:
        try:
            _become_script(request, output, error)
        finally:
            os._exit(120)
    os.close(output)
    os.close(error)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            os.write(status_writer, status.to_bytes(4, "big"))
            os._exit(0)


def _become_script(request: dict[str, Any], output: int, error: int) -> NoReturn:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (error, 2)):
        os.dup2(source, target)
    os.closerange(3, 1 << 16)
    kernel.set_dumpable(True)  # its own /proc/self again; init's stays closed
    os.umask(0o022)
    os.chdir(script.WORKSPACE)
    limits = request["limits"]
    bounds = {
        "CORE": 0,
        "CPU": int(limits["cpu_seconds"]) + 2,  # beyond the supervisor's own check, which names the reason
        "FSIZE": limits["file_mb"] * 2**20,
        "NOFILE": 1024,
        "NPROC": limits["processes"] + _ALLOWANCE,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }
    if request["watch_memory"]:
        bounds["AS"] = (2 * limits["memory_mb"] + 1024) * 2**20  # between two looks, one process cannot take it all
    kernel.set_limits(bounds)
    script.run_script(request["script"], request["seed"])


def _watch(
    init: int,
    channel: socket.socket,
    start_writer: int,
    status_reader: int,
    limits: dict[str, Any],
    watch_memory: bool,
) -> dict[str, Any]:
    """Wait until every process behind the wall is gone, killing them when a limit or the host says so."""
    start = time.monotonic()
    poller = select.poll()
    poller.register(status_reader, select.POLLIN)
    poller.register(channel, select.POLLIN)
    killed: str | None = None
    cpu = 0.0
    while not killed:
        ready = {descriptor for descriptor, _ in poller.poll(_INTERVAL_SECONDS * 1000)}
        if status_reader in ready:
            break
        if channel.fileno() in ready:
            message = json.loads(channel.recv(4096) or b'{"kill": "the host is gone"}')
            killed = message.get("kill")
            if "go" in message:
                start = time.monotonic()
                os.write(start_writer, b"g")
            continue
        cpu = max(cpu, _cpu_seconds())
        if cpu > limits["cpu_seconds"]:
            killed = "cpu"
        elif watch_memory and _memory_bytes(limits["memory_mb"] * 2**20) > limits["memory_mb"] * 2**20:
            killed = "memory"
    encoded = b"" if killed else os.read(status_reader, 4)
    os.kill(init, signal.SIGKILL)
    # When the first process of a pid namespace can be waited for, the kernel has ended all the others.
    _, _, usage = os.wait4(init, 0)
    return {
        "status": int.from_bytes(encoded, "big") if encoded else None,
        "killed": killed,
        "wall_seconds": time.monotonic() - start,
        "cpu_seconds": max(cpu, usage.ru_utime + usage.ru_stime),
    }


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def _cpu_seconds() -> float:
    """User and system time of all processes behind the wall and of the dead ones that were waited for."""
    ticks = 0
    for pid in _processes():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # gone between the listing and the look
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def _memory_bytes(enough: int) -> int:
    """Resident memory of all processes, shared pages counted once; coarse as long as that is below `enough`."""
    coarse = 0
    for pid in _processes():
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                coarse += int(file.read().split()[1]) * _PAGE
        except OSError:
            continue
    if coarse <= enough:
        return coarse
    exact = 0
    for pid in _processes():
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                exact += next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) * 1024
        except (OSError, StopIteration):
            continue
    return exact
