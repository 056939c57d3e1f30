"""One execution in a container, seen from the host: send the request, collect the answer, enforce the outer limits.

The capsule in the container enforces the precise limits; this side enforces coarser ones, in case a script stops the
capsule. The answer comes from a container, so every field is checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

import docker
import docker.errors

from environments.cancellation import is_cancelled
from environments.guest import transfer
from environments.guest.capsule import STARTED
from environments.protocol import Limits
from environments.sandbox.base import Ending, Execution, SandboxError
from environments.sandbox.docker.container import Waiting
from environments.sandbox.verdict import judge

_GRACE_SECONDS = 10.0
"""Time for the capsule to start and to pack, beyond the script's wall time."""
_LOOK_SECONDS = 1.0
"""Interval of checking a container's CPU time from outside."""
_READ_BYTES = 1 << 20
_FRAME = struct.Struct(">BxxxL")
_STDOUT = 1


class Exchange:
    """Exchange with one container; see the module."""

    def __init__(self, client: docker.DockerClient, waiting: Waiting, limits: Limits) -> None:
        self._client, self._container, self._connection = client, waiting.container, waiting.connection
        self._limits, self._room = limits, waiting.shape.room
        self._answer = bytearray()
        self._errors = bytearray()
        self._killed: str | None = None
        self._cpu_seconds = 0.0
        self._began = time.monotonic()

    def execute(self, request: bytes) -> None:
        """Send the request, and collect the container's output until it ends or is killed."""
        self._began = time.monotonic()
        self._connection.setblocking(False)
        self._attend(memoryview(request))

    def _attend(self, unsent: memoryview) -> None:
        connection, frames = self._connection, _Frames()
        most = 8 + transfer.MAX_INDEX_BYTES + self._room + 16 * 1024 * self._limits.output_kb
        poller = select.poll()
        poller.register(connection, select.POLLIN | select.POLLOUT)
        next_look = self._began + _LOOK_SECONDS
        while True:
            for _, event in poller.poll(_LOOK_SECONDS * 1000):
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    chunk = _receive(connection)
                    if chunk == b"":
                        return None
                    for kind, payload in frames.feed(chunk or b""):
                        collected = self._answer if kind == _STDOUT else self._errors
                        collected += payload if len(collected) < most else b""
                elif event & select.POLLOUT:
                    with contextlib.suppress(BlockingIOError, BrokenPipeError):
                        unsent = unsent[connection.send(unsent[:_READ_BYTES]) :]
                    if not unsent:
                        poller.modify(connection, select.POLLIN)
            now = time.monotonic()
            if now - self._began > self._limits.wall_seconds + _GRACE_SECONDS:
                return self._kill("wall")
            if now >= next_look:
                next_look = now + _LOOK_SECONDS
                if is_cancelled():
                    self._kill("wall")
                    raise SandboxError("the step was cancelled")
                self._cpu_seconds = self._cpu_from_outside()
                if self._cpu_seconds > self._limits.cpu_seconds + _GRACE_SECONDS / 2:
                    return self._kill("cpu")

    def _kill(self, reason: str) -> None:
        self._killed = reason
        with contextlib.suppress(docker.errors.APIError):
            self._container.kill()

    def _cpu_from_outside(self) -> float:
        try:
            stats = self._client.api.stats(self._container.id, stream=False, one_shot=True)
            return stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
        except (docker.errors.APIError, KeyError):
            return self._cpu_seconds  # it ended meanwhile

    def finish(self, workspace: Path, skip: frozenset[str]) -> Execution:
        """Unpack the workspace and return the result.

        Without a valid answer, the engine says how the container ended, and the workspace stays unchanged. Once the
        script has started, that is its fault, whatever it did to the capsule.

        Raises:
          SandboxError: the container or the capsule failed.
        """
        stream = io.BytesIO(bytes(self._answer[len(STARTED) :]))
        try:
            result = _read_result(stream)
            result["refused"] = transfer.unpack(stream, str(workspace), self._room, keep=skip)
        except transfer.TransferError:
            return self._without_answer()
        return judge(result, result.pop("stdout"), result.pop("stderr"), self._limits)

    def _without_answer(self) -> Execution:
        wall_seconds = time.monotonic() - self._began
        code = self._container.wait(timeout=60)["StatusCode"]
        self._container.reload()
        state = self._container.attrs["State"]
        if state.get("Error") or not (self._answer or state.get("OOMKilled")):
            reason = state.get("Error") or self._errors.decode(errors="replace")[-1000:] or f"exit status {code}"
            raise SandboxError(f"the container did not work: {reason}")
        result = {
            "status": None,
            "killed": "memory" if state.get("OOMKilled") else self._killed,
            "wall_seconds": wall_seconds,
            "cpu_seconds": self._cpu_seconds,
            "full": None,
            "refused": [],
        }
        execution = judge(result, "", "", self._limits)
        if execution.ending != Ending.EXITED:
            return execution
        return dataclasses.replace(execution, exit_code=code or 1, detail="the container ended early")


class _Frames:
    """Parser of the engine's multiplexed stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """Return the (stream, payload) pairs available after `chunk`; a payload is passed on in pieces."""
        self._buffer += chunk
        complete = []
        offset = 0
        while len(self._buffer) - offset >= _FRAME.size:
            kind, size = _FRAME.unpack_from(self._buffer, offset)
            if len(self._buffer) - offset - _FRAME.size < size:
                break
            start = offset + _FRAME.size
            complete.append((kind, bytes(self._buffer[start : start + size])))
            offset = start + size
        del self._buffer[:offset]
        return complete


def _receive(connection: socket.socket) -> bytes | None:
    """Receive some bytes; none at the end of the stream, None if there are none yet."""
    try:
        return connection.recv(_READ_BYTES)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def _read_result(stream: io.BytesIO) -> dict[str, Any]:
    """Parse the capsule's JSON and check every field, because it comes from a container.

    Raises:
      transfer.TransferError: it is missing or invalid.
    """
    length = int.from_bytes(stream.read(8), "big")
    encoded = stream.read(length)
    if not length or len(encoded) != length:
        raise transfer.TransferError("the answer ends early")
    try:
        answer = json.loads(encoded)
        status = answer["status"]
        if status is not None:
            os.waitstatus_to_exitcode(status)
        return {
            "status": status,
            "killed": answer["killed"] if answer["killed"] in ("wall", "cpu", "memory") else None,
            "wall_seconds": min(max(0.0, float(answer["wall_seconds"])), 1e9),
            "cpu_seconds": min(max(0.0, float(answer["cpu_seconds"])), 1e9),
            "out_of_memory": answer["out_of_memory"] is True,
            "full": answer["full"] if answer["full"] in ("disk", "inodes") else None,
            "stdout": str(answer["stdout"]),
            "stderr": str(answer["stderr"]),
        }
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise transfer.TransferError(f"result: {error}") from error
