"""One hardened container, started and waiting for its request, as `environments.sandbox.docker` prepares it.

Every writable place is a tmpfs with limited size and inodes, so a script never writes to the host's disk. /workspace
gets half of `disk_mb` (plus the size of the starting workspace), /tmp and /dev/shm a quarter each. All of it counts as
memory, as in every sandbox.

A container is made with the part of a request that the engine needs, its `Shape`; the script comes later, on standard
input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import select
import socket
import time
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container
from docker.types import DeviceRequest, Mount, Ulimit

from environments import guest
from environments.guest import tree
from environments.guest.script import MAX_PENDING_SIGNALS, environment
from environments.protocol import Limits

_GUEST = Path(guest.__file__).parent
_SHARE_OF_DISK = {"workspace": 2, "tmp": 4, "shm": 4}
"""Divisor of `disk_mb` for each place."""
_ROOM_STEP = 1 << 20
"""Granularity of sizes in bytes: workspaces of similar size fit the same container."""
_PROCESSES_BESIDE = 2
"""Processes in addition to the script's: the capsule, and one that is exiting."""
_FRESH_SECONDS = 300.0
"""Maximum age of a waiting container: an older one's connection may be lost without notice."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Settings of a container that are fixed when it is made."""

    memory_mb: int
    processes: int
    file_mb: int
    disk_mb: int
    room: int
    """Size of /workspace in bytes."""
    data: Path | None
    """Folder mounted as /workspace/data."""
    seed: int
    gpus: tuple[str, ...] = ()
    """Ids of GPUs."""

    @classmethod
    def of(
        cls, limits: Limits, workspace_bytes: int, data: Path | None, seed: int, gpus: tuple[str, ...] = ()
    ) -> Shape:
        """Return the shape for a starting workspace of this size."""
        steps = -(-workspace_bytes // _ROOM_STEP)
        room = steps * _ROOM_STEP + limits.disk_mb * 2**20 // _SHARE_OF_DISK["workspace"]
        bounds = (limits.memory_mb, limits.processes, limits.file_mb, limits.disk_mb)
        return cls(*bounds, room, data, seed, gpus)

    def settings(self, user: int) -> dict[str, Any]:
        """Return arguments of the SDK's `containers.create` that isolate a container running as `user`."""
        part = {name: self.disk_mb * 2**20 // share for name, share in _SHARE_OF_DISK.items()}
        files = tree.MAX_INODES
        safe = f"rw,nosuid,nodev,uid={user},gid={user}"
        fsize, memory = self.file_mb * 2**20, self.memory_mb * 2**20
        return {
            "environment": environment(self.seed),
            "working_dir": "/workspace",
            "user": f"{user}:{user}",
            "hostname": "sandbox",
            "network_mode": "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": True,
            "init": False,  # the capsule is the init process; as the first process it cannot be killed from inside
            "pids_limit": self.processes + _PROCESSES_BESIDE,
            "mem_limit": memory,
            "memswap_limit": memory,
            "shm_size": part["shm"],
            "tmpfs": {
                "/workspace": f"{safe},exec,mode=0755,size={self.room},nr_inodes={files}",
                "/tmp": f"{safe},exec,mode=1777,size={part['tmp']},nr_inodes={files}",  # noqa: S108
            },
            "ulimits": [
                Ulimit(name="core", soft=1, hard=1),  # not 0, which does not stop a handler that reads a pipe
                Ulimit(name="fsize", soft=fsize, hard=fsize),
                Ulimit(name="nofile", soft=1024, hard=1024),
                Ulimit(name="memlock", soft=0, hard=0),
                Ulimit(name="msgqueue", soft=0, hard=0),
                Ulimit(name="sigpending", soft=MAX_PENDING_SIGNALS, hard=MAX_PENDING_SIGNALS),
            ],
            "mounts": [
                Mount("/workspace/data", str(data), type="bind", read_only=True, propagation="rprivate")
                for data in [self.data]
                if data is not None
            ],
            "device_requests": [DeviceRequest(device_ids=list(self.gpus), capabilities=[["gpu"]])] if self.gpus else [],
            "log_config": {"Type": "none"},
        }


class Waiting:
    """A container whose capsule waits for a request on `connection`."""

    def __init__(
        self,
        client: docker.DockerClient,
        image: str,
        shape: Shape,
        user: int,
        held: contextlib.ExitStack,
        **settings: Any,
    ) -> None:
        """Create, attach to and start a container. After a failure nothing is left.

        Args:
          client: client of the engine.
          image: tag of the image.
          shape: shape of the container.
          user: id of the host's user that it runs as.
          held: resources that are closed when the container is removed.
          settings: settings added to those of `shape`.

        Raises:
          docker.errors.DockerException, requests.exceptions.RequestException, OSError: the engine failed.
        """
        self.shape = shape
        self._held = held
        with contextlib.ExitStack() as undo:
            undo.callback(held.close)
            self.container: Container = client.containers.create(
                image,
                ["/usr/local/bin/python3", "-P", "-s", "-c", _program()],
                stdin_open=True,  # closed when this side disconnects, so that the capsule ends with its worker
                **shape.settings(user),
                **settings,
            )
            undo.callback(remove, self.container)
            params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            self._attached = client.api.attach_socket(self.container.id, params=params)
            self.connection: socket.socket = self._attached._sock
            undo.callback(self._hang_up)
            self.container.start()
            self._started = time.monotonic()
            undo.pop_all()

    @property
    def fresh(self) -> bool:
        """Whether the container still waits and its capsule is silent: it writes before a request only when it ends."""
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        return not poller.poll(0) and time.monotonic() - self._started < _FRESH_SECONDS

    def close(self) -> None:
        """Kill and delete the container, and free its resources."""
        with self._held:
            self._hang_up()
            remove(self.container)

    def _hang_up(self) -> None:
        self._attached.close()
        self.connection.close()


def remove(container: Container) -> None:
    """Kill and delete in one call; a container that the engine is already removing counts as deleted."""
    with contextlib.suppress(docker.errors.NotFound):
        try:
            container.remove(force=True, v=True)
        except docker.errors.APIError as error:
            if error.status_code != 409:
                raise


def _program() -> str:
    """Return Python text that builds the package `inside` from its sources and starts the capsule."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_GUEST.glob("*.py"))}
    return (
        "import sys, types\n"
        f"sources = {sources!r}\n"
        "package = sys.modules['mlagent_inside'] = types.ModuleType('mlagent_inside')\n"
        "package.__path__ = []\n"
        "for name in ('kernel', 'tree', 'transfer', 'usage', 'capture', 'script', 'system_calls', 'capsule'):\n"
        "    module = sys.modules[f'mlagent_inside.{name}'] = types.ModuleType(f'mlagent_inside.{name}')\n"
        "    module.__package__ = 'mlagent_inside'\n"
        "    setattr(package, name, module)\n"
        "    exec(compile(sources[name], f'<{name}>', 'exec'), module.__dict__)\n"
        "del sources\n"
        "package.capsule.main()\n"
    )
