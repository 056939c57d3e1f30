"""The fast sandbox: a warm interpreter in a bubblewrap sandbox, forked into new namespaces for every execution.

It needs neither a container engine nor root. There are two layers of isolation. A script runs in its own user, pid,
mount, network, IPC and UTS namespaces, without capabilities, under a system-call filter. An escape from those ends as
an unprivileged user in the bubblewrap sandbox, which holds only the read-only root and the tasks' public data.

    run() -> pack the workspace -> zygote forks a supervisor -> script runs, this thread reads its output and
    enforces its limits -> supervisor packs the result -> unpack into the workspace -> Execution

`environments.guest` is the other side of every arrow. The hash seed of a script is the warm interpreter's
(fixed, 0); PYTHONHASHSEED is set to the execution's seed for child processes of the script.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environments.cancellation import is_cancelled
from environments.guest import system_calls, transfer
from environments.guest.capture import Capture
from environments.protocol import Limits
from environments.sandbox.base import GUARANTEES, Execution, SandboxError, SandboxUnavailableError
from environments.sandbox.bubblewrap.cgroups import Cgroup, open_cgroups
from environments.sandbox.bubblewrap.warm import WarmSandbox
from environments.sandbox.data import DataStore, StateFolder
from environments.sandbox.probe import probe
from environments.sandbox.rootfs import RootFsError, ensure_rootfs
from environments.sandbox.users import claim_users
from environments.sandbox.verdict import judge

_GRACE_SECONDS = 30.0
"""Time for isolating and for packing the workspace, beyond the script's wall time."""
_WATCH_SECONDS = 0.05
_READ_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")


class BubblewrapSandbox:
    """Sandbox on bubblewrap; see the module. `run` may be called from several threads concurrently.

    Executions share one warm interpreter if each has its own user id and the filter of system calls. Otherwise each
    execution has exclusive use of a warm interpreter.
    """

    name = "bubblewrap"
    gpus = 0
    """Number of GPUs: the warm sandbox shows no device of the host."""

    def __init__(self) -> None:
        """Build the root file system if this machine has none, and start the warm interpreter.

        Raises:
          SandboxUnavailableError: this host cannot run it; the message names the remedy.
        """
        try:
            self._rootfs = ensure_rootfs()
        except RootFsError as error:
            raise SandboxUnavailableError(str(error)) from error
        self.environment_digest = self._rootfs.digest
        self._users = claim_users() if os.geteuid() == 0 else None
        if self._users is None and os.geteuid() == 0:
            raise SandboxUnavailableError(
                "the sandbox 'bubblewrap' runs no script as root, and no user ids are left here for that: start the "
                "worker as an ordinary user, or in a container without a user namespace of its own"
            )
        self._shared = self._users is not None and system_calls.known()
        self._lock = threading.Lock()
        self._closed = False
        self._state = StateFolder(self._users.first if self._users else None)
        self._store = DataStore(self._state.path)
        self._idle: list[WarmSandbox] = []
        """Warm interpreters for the next execution; a shared one stays here."""
        self._executions: collections.Counter[WarmSandbox] = collections.Counter()
        """Number of running executions by warm interpreter."""
        try:
            self._idle.append(self._start())
        except BaseException:
            self._close_state()
            raise
        self._cgroups = open_cgroups()

    @property
    def claims(self) -> frozenset[str]:
        """Guarantees that hold by construction on this host; `environments.sandbox.probe` then tests them.

        Without control groups CPU time and memory are only polled, which a malicious script can outrun: no claim.
        """
        only_by_cgroups = frozenset() if self._cgroups else frozenset({"cpu_time", "memory"})
        only_by_filter = frozenset() if system_calls.known() else frozenset({"privileges"})
        only_by_users = frozenset() if self._shared else frozenset({"neighbours"})
        return frozenset(GUARANTEES) - only_by_cgroups - only_by_filter - only_by_users

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
        if gpus:
            raise SandboxError(f"the execution asks for {gpus} GPUs, which only the Docker sandbox passes on")
        with contextlib.ExitStack() as stack:
            warm = stack.enter_context(self._warm())
            user = stack.enter_context(self._users.lease()) if self._users else 0
            try:
                name = stack.enter_context(self._store.lease(data)) if data else None
                group = stack.enter_context(self._cgroups.lease(limits)) if self._cgroups else None
            except OSError as error:
                raise SandboxError(f"cannot prepare the execution: {error}") from error
            skip = frozenset({"data"} if name else ())
            incoming, outgoing = (stack.enter_context(_memory_file(kind)) for kind in ("incoming", "outgoing"))
            packed = transfer.pack(str(workspace), incoming, skip=skip)
            if packed.refused:
                raise SandboxError(f"the workspace cannot enter a sandbox: {packed.refused[0]}")
            incoming.flush()
            incoming.seek(0)
            request = {
                "script": script,
                "seed": seed,
                "data": name,
                "limits": limits.to_dict(),
                "workspace_bytes": packed.room,
                "watch_memory": group is None,
                "user": user,
            }
            call = _Call(warm, limits, group)
            try:
                result = call.execute(request, incoming.fileno(), outgoing.fileno())
            except OSError as error:
                raise SandboxError(f"the sandbox failed: {error}") from error
            if is_cancelled():
                raise SandboxError("the step was cancelled")
            outgoing.seek(0)
            room = limits.disk_mb * 2**20 + packed.room
            try:
                transfer.unpack(outgoing, str(workspace), room, keep=skip)
            except (OSError, transfer.TransferError) as error:
                raise SandboxError(f"cannot bring the workspace back: {error}") from error
            if group:
                result["cpu_seconds"] = group.cpu_seconds()
                result["out_of_memory"] = group.out_of_memory()
            return judge(result, call.stdout.text(), call.stderr.text(), limits)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for warm in {*self._idle, *self._executions}:
                warm.close()
        if self._cgroups:
            self._cgroups.close()
        self._close_state()

    def _close_state(self) -> None:
        self._state.close()
        if self._users:
            self._users.close()

    def _start(self) -> WarmSandbox:
        return WarmSandbox(self._rootfs.path, self._state.path, self._users)

    @contextlib.contextmanager
    def _warm(self) -> Iterator[WarmSandbox]:
        """Yield a warm interpreter for one execution, a new one if the last died or no longer answers.

        One that no longer answers is closed after the last execution in it, so that its neighbours go on.
        """
        with self._lock:
            if self._closed:
                raise SandboxError("this sandbox is closed")
            warm = self._idle.pop() if self._idle else None
            if warm and not warm.alive:
                self._close_unused(warm)
                warm = None
            if self._shared:
                self._idle.append(warm := warm or self._start())
            if warm:
                self._executions[warm] += 1
        if warm is None:
            warm = self._start()
            self._executions[warm] += 1
        try:
            yield warm
        finally:
            with self._lock:
                self._executions[warm] -= 1
                if not self._shared:
                    self._idle.append(warm)
                if self._closed or not warm.alive:
                    self._close_unused(warm)

    def _close_unused(self, warm: WarmSandbox) -> None:
        if self._executions[warm] == 0:
            del self._executions[warm]
            if warm in self._idle:
                self._idle.remove(warm)
            warm.close()


@dataclasses.dataclass
class _Call:
    """One execution on the host: its streams, clock and limits."""

    warm: WarmSandbox
    limits: Limits
    group: Cgroup | None

    def __post_init__(self) -> None:
        room = self.limits.output_kb * 1024
        self.stdout, self.stderr = Capture(room), Capture(room)

    def execute(self, request: dict[str, Any], incoming: int, outgoing: int) -> dict[str, Any]:
        """Submit the request, wait for its end, and return the supervisor's report.

        Raises:
          SandboxError: the supervisor failed, or did not answer in time.
          OSError: for example, the host is out of descriptors.
        """
        with contextlib.ExitStack() as stack:
            channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(channel.close)
            # With this the kernel attaches the sender's process id, in this host's numbers, to every message.
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            streams: dict[int, Capture] = {}
            with contextlib.ExitStack() as handed_over:
                handed_over.callback(theirs.close)
                writers = []
                for capture in (self.stdout, self.stderr):
                    reader, writer = os.pipe()
                    stack.callback(os.close, reader)
                    handed_over.callback(os.close, writer)
                    os.set_blocking(reader, False)
                    with contextlib.suppress(OSError):  # a user with many pipes gets small ones
                        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _READ_BYTES)
                    streams[reader] = capture
                    writers.append(writer)
                self.warm.submit(request, [theirs.fileno(), *writers, incoming, outgoing])
            result = self._attend(channel, streams)
            for reader, capture in streams.items():
                while _drain(reader, capture):
                    pass
            return result

    def _attend(self, channel: socket.socket, streams: dict[int, Capture]) -> dict[str, Any]:
        """Read output and enforce limits until the supervisor reports."""
        poller = select.poll()
        for descriptor in (channel.fileno(), *streams):
            poller.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + _GRACE_SECONDS
        started: float | None = None
        killed = False
        next_look = 0.0
        while True:
            for descriptor, _ in poller.poll(_WATCH_SECONDS * 1000):
                if descriptor in streams:
                    if not _drain(descriptor, streams[descriptor]):
                        poller.unregister(descriptor)
                    continue
                message, pid = _receive(channel)
                if "ready" not in message:
                    return message
                if self.group:
                    self.group.add(pid)
                channel.send(b'{"go": true}')
                started = time.monotonic()
                deadline = started + self.limits.wall_seconds + _GRACE_SECONDS
            now = time.monotonic()
            if now > deadline:
                self.warm.silent = True
                raise SandboxError("the warm sandbox does not answer; another is started for the next execution")
            if started is not None and not killed and now >= next_look:
                next_look = now + _WATCH_SECONDS
                if reason := self._exceeded(now - started):
                    killed = True
                    with contextlib.suppress(OSError):  # it may have ended meanwhile
                        channel.send(json.dumps({"kill": reason}).encode())

    def _exceeded(self, wall_seconds: float) -> str | None:
        if wall_seconds > self.limits.wall_seconds or is_cancelled():
            return "wall"
        if self.group and self.group.cpu_seconds() > self.limits.cpu_seconds:
            return "cpu"
        if self.group and self.group.out_of_memory():
            return "memory"
        return None


def _drain(reader: int, capture: Capture) -> bool:
    """Read available bytes once; return False at the end of the stream and if nothing is available."""
    try:
        chunk = os.read(reader, _READ_BYTES)
    except BlockingIOError:
        return False
    capture.feed(chunk)
    return bool(chunk)


def _receive(channel: socket.socket) -> tuple[dict[str, Any], int]:
    """Return one message and its sender's process id."""
    room = socket.CMSG_SPACE(_CREDENTIALS.size)
    try:
        message, ancillary, _, _ = channel.recvmsg(1 << 20, room)
    except ConnectionResetError:  # it ended before it read our `kill`; its earlier messages are queued behind the error
        message, ancillary, _, _ = channel.recvmsg(1 << 20, room)
    if not message:
        raise SandboxError("the supervisor of this execution died")
    content = json.loads(message)
    if "failure" in content:
        raise SandboxError(f"the sandbox could not run the script: {content['failure']}")
    pid = next((_CREDENTIALS.unpack(data)[0] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS), 0)
    return content, pid


@contextlib.contextmanager
def _memory_file(name: str) -> Iterator[Any]:
    """Yield an anonymous file that both sides can hold; it is freed with its last descriptor."""
    with os.fdopen(os.memfd_create(f"mlagent-{name}", os.MFD_CLOEXEC), "w+b") as file:
        yield file
