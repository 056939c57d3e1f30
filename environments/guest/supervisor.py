"""One execution in the warm sandbox: isolate it, run the script, return the changed workspace.

`keeper` forks a process for every execution, which calls `supervise`. An execution has three processes:

    supervisor   trusted; keeps the new namespaces' capabilities; invisible from inside
    init         pid 1 of the new pid namespace; no capabilities; reaps orphans; its death kills everything at once
    script       untrusted; forked by the warm interpreter (`zygote`) into init's namespaces

The host holds the other end of `channel` (SOCK_SEQPACKET, JSON):

    script -> host      {"ready": true}; the kernel attaches its process id, so that the host can put it in a cgroup
    host -> supervisor  {"go": true}: let the script start
    host -> supervisor  {"kill": reason}, or the channel's end: kill everything
    supervisor -> host  {"status": ..., "wall_seconds": ..., ...}, once all processes are gone and the workspace is
    packed
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

_SCRATCH = "/run"
_ROOT = f"{_SCRATCH}/root"
_OWN_INODES = 64
"""Inodes of the root itself, in addition to the script's."""
_INTERVAL_SECONDS = 0.025


def supervise(request: dict[str, Any], descriptors: list[int], warm: socket.socket) -> NoReturn:
    """Carry out `request` in this process and exit.

    Args:
      request: `script`, `seed`, `data` (name in the store, or None), `limits` (as `protocol.Limits`), `workspace_bytes`
        (size of the restored workspace), `watch_memory` (True if no cgroup limits memory), `user` (user id to run as,
        one of the warm sandbox's; 0: its own).
      descriptors: channel, standard output, standard error, the packed workspace, target of the packed result.
      warm: request socket of the warm interpreter.
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
    skip = frozenset({"data"} if request["data"] else ())
    _enter_namespaces(request["user"])
    _build_root(room, request["data"])
    with contextlib.ExitStack() as stack:
        init, pidfd = _start_init([channel.fileno(), warm.fileno(), output, error, incoming, outgoing])
        stack.callback(os.close, pidfd)
        with os.fdopen(incoming, "rb") as stream:
            transfer.unpack(stream, script.WORKSPACE, room, keep=skip)
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


def _enter_namespaces(user: int) -> None:
    """Create new namespaces under a user id of this execution alone, so that no per-user limit is shared."""
    if user:
        os.setresuid(user, user, user)
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.NEW_NAMESPACES)
    kernel.set_dumpable(True)  # otherwise another user owns the files that map the identity
    kernel.map_identity(script.UID, script.UID, outer_uid, outer_gid)
    kernel.raise_loopback()


def _build_root(room: int, data: str | None) -> None:
    """Build a private root under `_ROOT`, which init enters; nothing else of the warm sandbox is in it.

    Shared files are mounted through an overlay. Executions share their contents, but the kernel's state of a file
    (locks, watches, leases) is per execution, and no path of the host appears.
    """
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    # One file system for everything writable, so that one size and one inode count bound it.
    inodes = tree.MAX_INODES + _OWN_INODES
    kernel.mount("scratch", _SCRATCH, "tmpfs", safe, f"size={room},nr_inodes={inodes},mode=0755")
    for name in ("root", "nothing", "workspace", "tmp", "shm"):
        os.mkdir(f"{_SCRATCH}/{name}")
    kernel.mount(_ROOT, _ROOT, None, kernel.MS_BIND)
    for entry in os.scandir("/"):
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), _ROOT + entry.path)
        else:
            os.mkdir(_ROOT + entry.path)
    for place in ("/usr", "/etc"):
        _show(place, _ROOT + place)
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        os.close(os.open(f"{_ROOT}/dev/{name}", os.O_CREAT | os.O_CLOEXEC))
        kernel.mount(f"/dev/{name}", f"{_ROOT}/dev/{name}", None, kernel.MS_BIND)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{_ROOT}/dev/{name}")
    os.symlink("/proc/self/fd", f"{_ROOT}/dev/fd")
    os.mkdir(f"{_ROOT}/dev/shm")  # noqa: S108
    for name, place in (("workspace", script.WORKSPACE), ("tmp", "/tmp"), ("shm", "/dev/shm")):  # noqa: S108
        os.chmod(f"{_SCRATCH}/{name}", 0o755 if name == "workspace" else 0o1777)
        kernel.mount(f"{_SCRATCH}/{name}", _ROOT + place, None, kernel.MS_BIND)
    if data:
        os.mkdir(f"{_ROOT}{script.WORKSPACE}/data")
        _show(f"/store/{data}", f"{_ROOT}{script.WORKSPACE}/data")
    kernel.make_read_only(_ROOT)


def _show(source: str, place: str) -> None:
    """Mount `source` on `place`, read-only, as an overlay; as a bind if users may not mount one (before Linux 5.11)."""
    try:
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("overlay", place, "overlay", flags, f"lowerdir={source}:{_SCRATCH}/nothing")
    except OSError:
        kernel.mount(source, place, None, kernel.MS_BIND)
        kernel.make_read_only(place)


def _init(up: int, descriptors: list[int]) -> NoReturn:
    """Finish the isolation as pid 1, then reap orphans for ever."""
    for descriptor in descriptors:
        os.close(descriptor)
    kernel.mount("proc", f"{_ROOT}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.enter_root(_ROOT)
    with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")  # no way to gain capabilities
    kernel.make_read_only("/proc")
    kernel.drop_privileges()
    kernel.set_dumpable(False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps orphans
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the kernel ignores it for a first process without a handler
    os.write(up, b"u")
    os.close(up)
    while True:
        signal.pause()


def _start_init(not_its_own: list[int]) -> tuple[int, int]:
    """Fork init and wait until the isolation is complete; return init's process id and pidfd."""
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
    """Wait until every isolated process is gone; kill them on a limit or at the host's request.

    Args:
      init: process id of the namespace's first process.
      channel: socket to the host.
      start: pipe that starts the script.
      end: pipe on which the warm interpreter reports the script's end.
      limits: limits as in `protocol.Limits`.
      watch_memory: whether to enforce the memory limit here.
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
    # When the first process of a pid namespace can be waited for, the kernel has ended all others.
    os.waitpid(init, 0)
    if ended is None:
        raise RuntimeError("the warm interpreter could not start the script, or died")
    return {
        "status": ended["status"],
        "killed": killed,
        "wall_seconds": time.monotonic() - began,
        "cpu_seconds": max(cpu, ended["cpu_seconds"]),
    }
