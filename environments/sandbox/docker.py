"""The container sandbox: one hardened, single-use container an execution, through any engine with Docker's API.

    run() -> create, attach and start a container -> request and workspace go to its standard input -> `inside.capsule`
    runs the script -> result and workspace come from its standard output -> remove the container -> Execution

Everything that a script can write is a tmpfs with a size and a number of inodes, so nothing of it touches the host's
disk: half of `disk_mb` (and what the workspace starts with) is /workspace, a quarter each /tmp and /dev/shm. All of it
counts as memory, as anywhere. The tasks' data is bind-mounted from a copy, so the engine must run on this host.

The capsule keeps the precise limits; this side keeps coarser ones, in case a script finds a way to stop it.
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
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import docker
import docker.errors
import psutil
import requests.exceptions
from docker.models.containers import Container
from docker.types import Mount, Ulimit

from environments.images import RootFsError, ensure_rootfs
from environments.images.build import ensure_image
from environments.protocol import Limits
from environments.sandbox.base import GUARANTEES, Ending, Execution, SandboxError, SandboxUnavailableError
from environments.sandbox.data_store import DataStore, StateFolder
from environments.sandbox.inside import transfer
from environments.sandbox.inside.script import environment
from environments.sandbox.probe import probe
from environments.sandbox.verdict import judge

_INSTALL = "install and start one (Debian, Ubuntu: `apt-get install docker.io`), or set DOCKER_HOST"
_LABEL = "mlagent-jax.sandbox"
_USER = 1000
_INSIDE = Path(__file__).with_name("inside")
_SHARE_OF_DISK = {"workspace": 2, "tmp": 4, "shm": 4}
"""The part of `disk_mb` is one over this."""
_GRACE_SECONDS = 10.0
"""For the capsule to start and to pack, beyond the script's own wall time."""
_LOOK_SECONDS = 1.0
"""Between two looks at a container's CPU time from outside."""
_PROCESSES_BESIDE = 2
"""The capsule, and a process on its way out."""
_READ_BYTES = 1 << 20
_FRAME = struct.Struct(">BxxxL")
_STDOUT = 1

_ENGINE_ERRORS = (docker.errors.DockerException, requests.exceptions.RequestException, OSError)


class DockerSandbox:
    """See the module. `run` may be called from several threads at once."""

    name = "docker"

    def __init__(self, cpus: float = 1.0) -> None:
        """Connect to the engine that DOCKER_HOST names, and import the image if it has none yet.

        Where the engine offers gVisor (the runtime `runsc`), containers run in it.

        Args:
          cpus: cores that one container may use.

        Raises:
          SandboxUnavailableError: no engine answers, or the image cannot be built.
        """
        try:
            self._client = docker.from_env(timeout=120, max_pool_size=64)
            info = self._client.info()
        except _ENGINE_ERRORS as error:
            raise SandboxUnavailableError(f"no Docker engine answers ({error}): {_INSTALL}") from error
        try:
            rootfs = ensure_rootfs()
            self._image = ensure_image(self._client, rootfs)
        except (RootFsError, *_ENGINE_ERRORS) as error:
            raise SandboxUnavailableError(f"the sandbox' image cannot be made: {error}") from error
        self.environment_digest = rootfs.digest
        self._nano_cpus = int(min(cpus, info.get("NCPU", cpus)) * 1e9)
        self._runtime = "runsc" if "runsc" in info.get("Runtimes", {}) else None
        self._program = _program()
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._remove_abandoned()
        self._state = StateFolder(user=None)
        self._store = DataStore(self._state.path)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def claims(self) -> frozenset[str]:
        """All: `environments.sandbox.probe` finds out which this engine keeps."""
        return frozenset(GUARANTEES)

    @property
    def guarantees(self) -> frozenset[str]:
        return probe(self)

    def run(self, workspace: Path, script: str, limits: Limits, data: Path | None = None, seed: int = 0) -> Execution:
        """See `environments.sandbox.base.Sandbox.run`."""
        if self._closed:
            raise SandboxError("this sandbox is closed")
        with contextlib.ExitStack() as stack:
            try:
                name = stack.enter_context(self._store.lease(data)) if data else None
            except OSError as error:
                raise SandboxError(f"cannot prepare the execution: {error}") from error
            skip = frozenset({"data"} if name else ())
            packed = io.BytesIO()
            if refused := transfer.pack(str(workspace), packed, limits.memory_mb * 2**20, skip=skip):
                path, why = refused[0]
                raise SandboxError(f"the workspace holds {path!r}, which cannot enter a sandbox: {why}")
            room = packed.tell() + limits.disk_mb * 2**20 // _SHARE_OF_DISK["workspace"]
            asked = {"script": script, "seed": seed, "data": name, "limits": limits.to_dict(), "room": room}
            request = json.dumps(asked).encode()
            try:
                container = self._create(limits, room, name, seed)
                stack.callback(self._remove, container)
                call = _Call(self._client, container, limits, room)
                call.execute(len(request).to_bytes(8, "big") + request + packed.getvalue())
                return call.finish(workspace, skip)
            except _ENGINE_ERRORS as error:
                raise SandboxError(f"the Docker engine failed: {error}") from error

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(*_ENGINE_ERRORS):
            for container in self._client.containers.list(all=True, filters={"label": f"{_LABEL}={self._owner}"}):
                self._remove(container)
        self._client.close()
        self._state.close()

    def _create(self, limits: Limits, room: int, data: str | None, seed: int) -> Container:
        part = {name: limits.disk_mb * 2**20 // share for name, share in _SHARE_OF_DISK.items()}
        files = transfer.MAX_FILES // 2
        safe = f"rw,nosuid,nodev,uid={_USER},gid={_USER}"
        memory = limits.memory_mb * 2**20
        mounts = []
        if data:
            source = str(self._state.path / data)
            mounts.append(Mount("/workspace/data", source, type="bind", read_only=True, propagation="rprivate"))
        fsize, processes = limits.file_mb * 2**20, limits.processes + _PROCESSES_BESIDE
        return self._client.containers.create(
            self._image,
            ["/usr/local/bin/python3", "-P", "-s", "-c", self._program],
            labels={_LABEL: self._owner},
            environment=environment(seed),
            working_dir="/workspace",
            user=f"{_USER}:{_USER}",
            hostname="sandbox",
            stdin_open=True,
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            read_only=True,
            init=False,  # the capsule is one, and as the first process cannot be killed from inside
            pids_limit=processes,
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=self._nano_cpus,
            shm_size=part["shm"],
            tmpfs={
                "/workspace": f"{safe},exec,mode=0755,size={room},nr_inodes={files}",
                "/tmp": f"{safe},exec,mode=1777,size={part['tmp']},nr_inodes={files}",  # noqa: S108
            },
            ulimits=[
                Ulimit(name="core", soft=0, hard=0),
                Ulimit(name="fsize", soft=fsize, hard=fsize),
                Ulimit(name="nofile", soft=1024, hard=1024),
                Ulimit(name="memlock", soft=0, hard=0),
                Ulimit(name="msgqueue", soft=0, hard=0),
            ],
            mounts=mounts,
            log_config={"Type": "none"},
            runtime=self._runtime,
        )

    def _remove(self, container: Container) -> None:
        """Kill and delete in one call; a container that the engine is already removing is as good as gone."""
        with contextlib.suppress(docker.errors.NotFound):
            try:
                container.remove(force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code != 409:
                    raise

    def _remove_abandoned(self) -> None:
        """Delete containers of workers on this host that died."""
        for container in self._client.containers.list(all=True, filters={"label": _LABEL}):
            host, _, rest = container.labels[_LABEL].partition(":")
            pid = rest.partition(":")[0]
            if host == socket.gethostname() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                with contextlib.suppress(docker.errors.APIError):
                    self._remove(container)


def _program() -> str:
    """Python text that makes the package `inside` from its sources and starts the capsule."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_INSIDE.glob("*.py"))}
    return (
        "import sys, types\n"
        f"sources = {sources!r}\n"
        "package = sys.modules['mlagent_inside'] = types.ModuleType('mlagent_inside')\n"
        "package.__path__ = []\n"
        "for name in ('kernel', 'transfer', 'usage', 'capture', 'script', 'capsule'):\n"
        "    module = sys.modules[f'mlagent_inside.{name}'] = types.ModuleType(f'mlagent_inside.{name}')\n"
        "    module.__package__ = 'mlagent_inside'\n"
        "    setattr(package, name, module)\n"
        "    exec(compile(sources[name], f'<{name}>', 'exec'), module.__dict__)\n"
        "del sources\n"
        "package.capsule.main()\n"
    )


@dataclasses.dataclass
class _Call:
    """One container as this side sees it."""

    client: docker.DockerClient
    container: Container
    limits: Limits
    room: int

    def __post_init__(self) -> None:
        self._answer = bytearray()
        self._errors = bytearray()
        self._killed: str | None = None
        self._cpu_seconds = 0.0
        self._began = time.monotonic()

    def execute(self, request: bytes) -> None:
        """Start the container, feed it, and collect what it says until it ends or has to."""
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        attached = self.client.api.attach_socket(self.container.id, params=params)
        connection = attached._sock
        try:
            self.container.start()
            self._began = time.monotonic()
            connection.setblocking(False)
            self._attend(connection, memoryview(request))
        finally:
            attached.close()
            connection.close()

    def _attend(self, connection: socket.socket, unsent: memoryview) -> None:
        frames = _Frames()
        most = 8 + transfer.MAX_INDEX_BYTES + self.room + 16 * 1024 * self.limits.output_kb
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
            if now - self._began > self.limits.wall_seconds + _GRACE_SECONDS:
                return self._kill("wall")
            if now >= next_look:
                next_look = now + _LOOK_SECONDS
                self._cpu_seconds = self._cpu_from_outside()
                if self._cpu_seconds > self.limits.cpu_seconds + _GRACE_SECONDS / 2:
                    return self._kill("cpu")

    def _kill(self, reason: str) -> None:
        self._killed = reason
        with contextlib.suppress(docker.errors.APIError):
            self.container.kill()

    def _cpu_from_outside(self) -> float:
        try:
            stats = self.client.api.stats(self.container.id, stream=False, one_shot=True)
            return stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
        except (docker.errors.APIError, KeyError):
            return self._cpu_seconds  # it ended meanwhile

    def finish(self, workspace: Path, skip: frozenset[str]) -> Execution:
        """Bring the workspace back and judge.

        Without an answer that makes sense, the engine says how the container ended, and the workspace stays as it was.

        Raises:
          SandboxError: the container or the capsule failed.
        """
        stream = io.BytesIO(bytes(self._answer))
        try:
            result = _read_result(stream)
            result["refused"] = transfer.unpack(stream, str(workspace), self.room, keep=skip)
        except transfer.TransferError:
            return self._without_answer()
        return judge(result, result.pop("stdout"), result.pop("stderr"), self.limits)

    def _without_answer(self) -> Execution:
        wall_seconds = time.monotonic() - self._began
        code = self.container.wait(timeout=60)["StatusCode"]
        self.container.reload()
        state = self.container.attrs["State"]
        if state.get("Error") or code in (125, 126, 127) or self._errors:
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
        execution = judge(result, "", "", self.limits)
        if execution.ending != Ending.EXITED:
            return execution
        return dataclasses.replace(execution, exit_code=code or 1, detail="the container ended early")


class _Frames:
    """Takes the engine's multiplexed stream apart."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """(stream, payload) of what is complete with `chunk`; a payload is passed on as it comes."""
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
    """Some bytes, none at the end of the stream, None where there are none yet."""
    try:
        return connection.recv(_READ_BYTES)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def _read_result(stream: io.BytesIO) -> dict[str, Any]:
    """The capsule's JSON, checked field by field: it comes out of a container.

    Raises:
      transfer.TransferError: it is not there, or not what a capsule says.
    """
    length = int.from_bytes(stream.read(8), "big")
    encoded = stream.read(length)
    if not length or len(encoded) != length:
        raise transfer.TransferError("the answer ends early")
    try:
        said = json.loads(encoded)
        status = said["status"]
        if status is not None:
            os.waitstatus_to_exitcode(status)
        return {
            "status": status,
            "killed": said["killed"] if said["killed"] in ("wall", "cpu", "memory") else None,
            "wall_seconds": min(max(0.0, float(said["wall_seconds"])), 1e9),
            "cpu_seconds": min(max(0.0, float(said["cpu_seconds"])), 1e9),
            "out_of_memory": said["out_of_memory"] is True,
            "full": said["full"] if said["full"] in ("disk", "inodes") else None,
            "stdout": str(said["stdout"]),
            "stderr": str(said["stderr"]),
        }
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise transfer.TransferError(f"result: {error}") from error
