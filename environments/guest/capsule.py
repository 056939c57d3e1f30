"""The program of a container: unpacks a workspace, runs the script in a child process, returns the changed workspace.

A container serves one execution, and this program is its first process: signals from inside do not reach it, other
processes cannot inspect it, and orphans become its children. Limits here are precise; the host enforces coarser ones
from outside.

    standard input    8 bytes length, JSON request, the packed workspace (see `transfer`)
    standard output   `STARTED` before the script starts; then 8 bytes length, JSON result, the packed workspace
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, BinaryIO, NoReturn

from . import kernel, script, system_calls, transfer, usage
from .capture import Capture

_INTERVAL_SECONDS = 0.05
_READ_BYTES = 1 << 16
STARTED = b"s"
"""Byte sent before the script starts. If the capsule ends without an answer after it, the script is to blame."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the kernel ignores it for the first process
    kernel.set_dumpable(False)  # the script must not inspect this process or write to its descriptors
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    request = json.loads(_read_exactly(incoming, int.from_bytes(_read_exactly(incoming, 8), "big")))
    skip = frozenset({"data"} if request["data"] else ())
    transfer.unpack(incoming, script.WORKSPACE, request["room"], keep=skip)
    outgoing.write(STARTED)
    outgoing.flush()
    result = _run(request)
    _end_everything_else()
    result["full"] = next(filter(None, map(usage.full, (script.WORKSPACE, "/tmp", "/dev/shm"))), None)  # noqa: S108
    encoded = json.dumps(result).encode()
    outgoing.write(len(encoded).to_bytes(8, "big") + encoded)
    transfer.pack(script.WORKSPACE, outgoing, request["room"], skip=skip)
    outgoing.flush()


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the host closed the stream")
    return data


def _run(request: dict[str, Any]) -> dict[str, Any]:
    limits = request["limits"]
    pipes = [os.pipe(), os.pipe()]
    wake, wake_writer = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    cpu_before = usage.group_cpu_seconds()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _become_script(request, [writer for _, writer in pipes])
        finally:
            os._exit(120)
    for _, writer in pipes:
        os.close(writer)
    captures = {reader: Capture(limits["output_kb"] * 1024) for reader, _ in pipes}
    status, killed = _attend(child, captures, limits, cpu_before, began, wake)
    wall_seconds = time.monotonic() - began
    return {
        "status": status,
        "killed": killed,
        "wall_seconds": wall_seconds,
        "cpu_seconds": _cpu_seconds(cpu_before),
        "out_of_memory": usage.group_out_of_memory(),
        "stdout": captures[pipes[0][0]].text(),
        "stderr": captures[pipes[1][0]].text(),
    }


def _become_script(request: dict[str, Any], writers: list[int]) -> NoReturn:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in zip((nothing, *writers), (0, 1, 2), strict=True):
        os.dup2(source, target)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    kernel.set_dumpable(True)
    kernel.set_limits({"CPU": int(request["limits"]["cpu_seconds"]) + 2})
    system_calls.install()
    os.chdir(script.WORKSPACE)
    script.run_script(request["script"], request["seed"])


def _attend(
    child: int,
    captures: dict[int, Capture],
    limits: dict[str, Any],
    cpu_before: float | None,
    began: float,
    wake: int,
) -> tuple[int | None, str | None]:
    """Read output and enforce limits until the script ends; return its wait status or the reason for killing it."""
    poller = select.poll()
    for reader in captures:
        os.set_blocking(reader, False)
        poller.register(reader, select.POLLIN)
    poller.register(wake, select.POLLIN)
    next_check = 0.0
    killed: str | None = None
    status: int | None = None
    while status is None and not killed:
        for descriptor, _ in poller.poll(_INTERVAL_SECONDS * 1000):
            if descriptor == wake:
                os.read(wake, 4096)
                status = _reap().get(child)
            elif not _drain(descriptor, captures[descriptor]):
                poller.unregister(descriptor)
        if (now := time.monotonic()) >= next_check:
            next_check = now + _INTERVAL_SECONDS
            if now - began > limits["wall_seconds"]:
                killed = "wall"
            elif _cpu_seconds(cpu_before) > limits["cpu_seconds"]:
                killed = "cpu"
            elif usage.group_out_of_memory():
                killed = "memory"
    for reader, capture in captures.items():
        while _drain(reader, capture):
            pass
    return status, killed


def _drain(reader: int, capture: Capture) -> bool:
    try:
        chunk = os.read(reader, _READ_BYTES)
    except BlockingIOError:
        return False
    capture.feed(chunk)
    return bool(chunk)


def _cpu_seconds(before: float | None) -> float:
    if before is None:
        return usage.cpu_seconds()
    return (usage.group_cpu_seconds() or before) - before


def _reap() -> dict[int, int]:
    """Return the wait statuses of all ended children, by process id."""
    ended = {}
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = child[1]
    except ChildProcessError:
        pass
    return ended


def _end_everything_else() -> None:
    """Kill all other processes until none is left. As the first process, this one inherits them all."""
    try:
        while True:
            os.kill(-1, signal.SIGKILL)
            _reap()
            time.sleep(0.002)
    except ProcessLookupError:
        return
