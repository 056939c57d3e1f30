"""One execution in the warm sandbox: build the wall, run the script behind it, bring back what it left.

`keeper` forks a process for every execution, which calls `supervise`. Three processes make one execution:

    supervisor   trusted; keeps the fresh namespaces' capabilities; not visible from behind the wall
    init         pid 1 of the fresh pid namespace; no capabilities; reaps orphans; its death kills everything at once
    script       the untrusted one, forked by the warm interpreter (`zygote`) into init's namespaces

The host holds the other end of `channel` (SOCK_SEQPACKET, JSON) and drives this sequence:

    script -> host      {"ready": true}; the kernel attaches its process id, so that the host can put it in a cgroup
    host -> supervisor  {"go": true}: let the script start
    host -> supervisor  {"kill": reason}, or the channel's end: kill everything
    supervisor -> host  {"status": ..., "wall_seconds": ..., ...}, once nothing is left and the workspace is packed
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from . import kernel, script, transfer, tree, usage

UID = 1000
"""Of the script, inside."""
_SCRATCH = "/run"
_INTERVAL_SECONDS = 0.025


def supervise(request: dict[str, Any], descriptors: list[int], warm: socket.socket) -> NoReturn:
    """Carry out `request` in this process and leave.

    Args:
      request: `script`, `seed`, `data` (name in the store, or None), `limits` (as `protocol.Limits`), `workspace_bytes`
        (what is restored), `watch_memory` (no cgroup does it).
      descriptors: channel, standard output, standard error, the packed workspace, where to pack it afterwards.
      warm: where the warm interpreter takes requests.
    """
    channel = socket.socket(fileno=descriptors[0])
    output, error, incoming, outgoing = descriptors[1:]
    try:
        result = _execute(request, channel, warm, output, error, incoming, outgoing)
    except Exception as failure:
        result = {"failure": f"{type(failure).__name__}: {failure}"}
    channel.send(json.dumps(result).encode())
    os._exit(0)


def _execute(
    request: dict[str, Any],
    channel: socket.socket,
    warm: socket.socket,
    output: int,
    error: int,
    incoming: int,
    outgoing: int,
) -> dict[str, Any]:
    limits = request["limits"]
    room = limits["disk_mb"] * 2**20 + request["workspace_bytes"]
    _enter_namespaces(room, request["data"])
    skip = frozenset({"data"} if request["data"] else ())
    with os.fdopen(incoming, "rb") as stream:
        transfer.unpack(stream, script.WORKSPACE, room, keep=skip)
    with contextlib.ExitStack() as stack:
        init, pidfd = _start_init([channel.fileno(), warm.fileno(), output, error, outgoing])
        stack.callback(os.close, pidfd)
        end_reader, end_writer = os.pipe()
        start_reader, start_writer = os.pipe()
        socket.send_fds(
            warm, [json.dumps(request).encode()], [pidfd, channel.fileno(), output, error, start_reader, end_writer]
        )
        for descriptor in (output, error, start_reader, end_writer):
            os.close(descriptor)
        result = _watch(init, channel, start_writer, end_reader, limits, request["watch_memory"])
    result["full"] = usage.full(script.WORKSPACE)
    with os.fdopen(outgoing, "wb") as stream:
        result["refused"] = transfer.pack(script.WORKSPACE, stream, room, skip=skip).refused
    return result


def _enter_namespaces(room: int, data: str | None) -> None:
    """Fresh namespaces, and in them a private view of the warm sandbox's files."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEW_NAMESPACES)
    kernel.map_identity(UID, UID, outer_uid, outer_gid)
    kernel.raise_loopback()
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # One file system for all that can be written, so that one size and one inode count bound it.
    kernel.mount("scratch", _SCRATCH, "tmpfs", safe, f"size={room},nr_inodes={tree.MAX_INODES},mode=0755")
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


def _init(up: int, descriptors: list[int]) -> NoReturn:
    """Pid 1: finish the wall from inside, then reap orphans for ever."""
    for descriptor in descriptors:
        os.close(descriptor)
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")  # no way to capabilities of any kind
    kernel.make_read_only("/proc")
    kernel.drop_privileges()
    kernel.set_dumpable(False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
    os.write(up, b"u")
    os.close(up)
    while True:
        signal.pause()


def _start_init(not_its_own: list[int]) -> tuple[int, int]:
    """Fork the init process and wait until the wall is complete; returns its process id and a pidfd of it."""
    reader, writer = os.pipe()
    init = os.fork()
    if init == 0:
        _init(writer, [reader, *not_its_own])
    os.close(writer)
    with os.fdopen(reader, "rb") as up:
        if not up.read(1):
            raise RuntimeError("the init process could not complete the wall")
    return init, os.pidfd_open(init)


def _watch(
    init: int, channel: socket.socket, start: int, end: int, limits: dict[str, Any], watch_memory: bool
) -> dict[str, Any]:
    """Wait until every process behind the wall is gone, killing them when a limit or the host says so.

    Args:
      init: process id of the namespace's first process.
      channel: to and from the host.
      start: pipe that starts the script.
      end: pipe on which the warm interpreter says how it ended.
      limits: as `protocol.Limits`.
      watch_memory: whether memory is ours to watch.
    """
    began = time.monotonic()
    poller = select.poll()
    poller.register(end, select.POLLIN)
    poller.register(channel, select.POLLIN)
    killed: str | None = None
    ended: dict[str, Any] = {"status": None, "cpu_seconds": 0.0}
    cpu = 0.0
    while not killed:
        ready = {descriptor for descriptor, _ in poller.poll(_INTERVAL_SECONDS * 1000)}
        if end in ready:
            ended = json.loads(os.read(end, 4096) or b"null")
            break
        if channel.fileno() in ready:
            message = json.loads(channel.recv(4096) or b'{"kill": "the host is gone"}')
            killed = message.get("kill")
            if "go" in message:
                began = time.monotonic()
                os.write(start, b"g")
            continue
        cpu = max(cpu, usage.cpu_seconds())
        if cpu > limits["cpu_seconds"]:
            killed = "cpu"
        elif watch_memory and usage.memory_bytes(limits["memory_mb"] * 2**20) > limits["memory_mb"] * 2**20:
            killed = "memory"
    os.kill(init, signal.SIGKILL)
    # When the first process of a pid namespace can be waited for, the kernel has ended all the others.
    os.waitpid(init, 0)
    if ended is None:
        raise RuntimeError("the warm interpreter could not start the script, or died")
    return {
        "status": ended["status"],
        "killed": killed,
        "wall_seconds": time.monotonic() - began,
        "cpu_seconds": max(cpu, ended["cpu_seconds"]),
    }
