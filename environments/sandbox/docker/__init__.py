"""The container sandbox: one hardened, single-use container per execution, through any engine with Docker's API.

    run() -> take a prepared container, or make one (`container`) -> request and workspace go to its standard input ->
    `guest.capsule` runs the script -> result and workspace come from its standard output (`exchange`) -> Execution

Making a container takes most of an execution's overhead. So while a script runs, the next container of the same shape
is prepared (`ahead`), and the old one, dead by then, is removed in the background. No container runs two scripts.

The tasks' data is bind-mounted from a copy, so the engine must run on this host.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

import docker
import docker.errors
import psutil
import requests.exceptions

from environments.guest import system_calls, transfer
from environments.protocol import Limits
from environments.sandbox.base import GUARANTEES, Execution, SandboxError, SandboxUnavailableError
from environments.sandbox.data import DataStore, StateFolder
from environments.sandbox.docker.ahead import Ahead
from environments.sandbox.docker.container import Shape, Waiting, remove
from environments.sandbox.docker.exchange import Exchange
from environments.sandbox.gpus import GpuPool, nvidia_gpus
from environments.sandbox.probe import probe
from environments.sandbox.rootfs import RootFsError, ensure_rootfs
from environments.sandbox.rootfs.build import ensure_image
from environments.sandbox.users import NARROW, WIDE, claim_users

_INSTALL = "install and start one (Debian, Ubuntu: `apt-get install docker.io`), or set DOCKER_HOST"
_LABEL = "mlagent-jax.sandbox"

_USER = 1000
"""User id of all containers, if each cannot have its own."""
_ENGINE_ERRORS = (docker.errors.DockerException, requests.exceptions.RequestException, OSError)


class DockerSandbox:
    """Sandbox on a container engine; see the module. `run` may be called from several threads concurrently."""

    name = "docker"

    def __init__(self, cpus: float = 1.0) -> None:
        """Connect to the engine that DOCKER_HOST names, and import the image if missing.

        If the engine offers gVisor (the runtime `runsc`), containers run in it. GPUs are those of `nvidia-smi`; an
        execution gets as many as it requests, which needs NVIDIA's container toolkit (in gVisor its `--nvproxy`).

        Args:
          cpus: cores available to one container.

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
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._settings: dict[str, Any] = {
            "labels": {_LABEL: self._owner},
            "nano_cpus": int(min(cpus, info.get("NCPU", cpus)) * 1e9),
            "runtime": "runsc" if "runsc" in info.get("Runtimes", {}) else None,
        }
        shifted = any(name in option for option in info.get("SecurityOptions") or () for name in ("rootless", "userns"))
        self._users = claim_users(NARROW if shifted else WIDE)
        self._remove_abandoned()
        self._state = StateFolder(user=None)
        self._store = DataStore(self._state.path)
        self._gpus = GpuPool(nvidia_gpus())
        self._containers: Ahead[Shape, Waiting] = Ahead(self._make, _discard, lambda waiting: waiting.fresh)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def gpus(self) -> int:
        """Number of GPUs available to executions."""
        return self._gpus.count

    @property
    def claims(self) -> frozenset[str]:
        """All guarantees possible here; `environments.sandbox.probe` tests which this engine keeps."""
        only_by_users = frozenset() if self._users and system_calls.known() else frozenset({"neighbours"})
        return frozenset(GUARANTEES) - only_by_users

    @property
    def guarantees(self) -> frozenset[str]:
        return probe(self)

    def run(
        self,
        workspace: Path,
        script: str,
        limits: Limits,
        data: Path | None = None,
        seed: int = 0,
        gpus: int = 0,
    ) -> Execution:
        """Run a script; see `environments.sandbox.base.Sandbox.run`."""
        if self._closed:
            raise SandboxError("this sandbox is closed")
        with contextlib.ExitStack() as stack:
            try:
                name = stack.enter_context(self._store.lease(data)) if data else None
            except OSError as error:
                raise SandboxError(f"cannot prepare the execution: {error}") from error
            skip = frozenset({"data"} if name else ())
            stream = io.BytesIO()
            packed = transfer.pack(str(workspace), stream, skip=skip)
            if packed.refused:
                raise SandboxError(f"the workspace cannot enter a sandbox: {packed.refused[0]}")
            devices = stack.enter_context(self._gpus.lease(gpus)) if gpus else ()
            shape = Shape.of(limits, packed.room, self._state.path / name if name else None, seed, devices)
            fields = {"script": script, "seed": seed, "data": name, "limits": limits.to_dict(), "room": shape.room}
            request = json.dumps(fields).encode()
            try:
                exchange = Exchange(self._client, stack.enter_context(self._container(shape)), limits)
                exchange.execute(len(request).to_bytes(8, "big") + request + stream.getvalue())
                return exchange.finish(workspace, skip)
            except _ENGINE_ERRORS as error:
                raise SandboxError(f"the Docker engine failed: {error}") from error

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._gpus.close()
        self._containers.close()
        with contextlib.suppress(*_ENGINE_ERRORS):
            for container in self._client.containers.list(
                all=True, ignore_removed=True, filters={"label": f"{_LABEL}={self._owner}"}
            ):
                remove(container)
        self._client.close()
        self._state.close()
        if self._users:
            self._users.close()

    def _container(self, shape: Shape) -> contextlib.AbstractContextManager[Waiting]:
        """Yield a container for one execution."""
        if shape.gpus:  # A waiting container would keep its devices from others.
            return contextlib.closing(self._make(shape))
        return self._containers.lease(shape)

    def _make(self, shape: Shape) -> Waiting:
        held = contextlib.ExitStack()
        if shape.data is not None:
            held.enter_context(self._store.hold(shape.data.name))
        user = self._users.first + held.enter_context(self._users.lease()) if self._users else _USER
        return Waiting(self._client, self._image, shape, user, held, **self._settings)

    def _remove_abandoned(self) -> None:
        """Delete containers of dead workers on this host."""
        for container in self._client.containers.list(all=True, ignore_removed=True, filters={"label": _LABEL}):
            host, _, rest = container.labels[_LABEL].partition(":")
            pid = rest.partition(":")[0]
            if host == socket.gethostname() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                with contextlib.suppress(docker.errors.APIError):
                    remove(container)


def _discard(waiting: Waiting) -> None:
    """Remove a container; if the engine fails to, closing the sandbox tries again."""
    with contextlib.suppress(*_ENGINE_ERRORS):
        waiting.close()
