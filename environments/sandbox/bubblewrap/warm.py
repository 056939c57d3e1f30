"""The host's side of the warm bubblewrap sandbox: start it, send it requests, end it.

`environments.sandbox.bubblewrap` holds one of these and starts another when it dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from environments import guest
from environments.guest.script import environment
from environments.sandbox.base import SandboxError, SandboxUnavailableError
from environments.sandbox.users import BLOCK, Users

INSTALL = "install bubblewrap (Debian, Ubuntu: `apt-get install bubblewrap`; Fedora: `dnf install bubblewrap`)"
FORBIDDEN = (
    "if this host forbids unprivileged user namespaces, allow them: `sysctl -w kernel.unprivileged_userns_clone=1` "
    "(Debian), `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu 24.04 and later), "
    "`sysctl -w user.max_user_namespaces=15000`; inside a container, run it with `--security-opt seccomp=unconfined`"
)
_GUEST = Path(guest.__file__).parent
_MOUNTED = "/opt/mlagent"
_PACKAGE = "mlagent_inside"
_MAIN = f"import sys; sys.path.insert(0, {_MOUNTED!r}); from {_PACKAGE}.keeper import main; main()"
_START_SECONDS = 120.0


class WarmSandbox:
    """A running warm interpreter in a bubblewrap sandbox."""

    def __init__(self, rootfs: Path, store: Path, users: Users | None) -> None:
        """Start the sandbox and wait until it has imported the scripts' common packages.

        Args:
          rootfs: folder that becomes `/`, read-only.
          store: folder that becomes `/store`, read-only; the only other part of the host that is visible inside.
          users: host user ids for the sandbox, or None for this process's own alone.

        Raises:
          SandboxUnavailableError: bubblewrap is missing, or cannot make its namespaces on this host.
        """
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxUnavailableError(f"the sandbox 'bubblewrap' needs the program bwrap: {INSTALL}")
        self._lock = threading.Lock()
        self.silent = False
        """Whether an execution in it got no answer: no other may start in it."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        info_reader, info_writer = os.pipe()
        go_reader, go_writer = os.pipe()
        user, go = (users.first, go_reader) if users else (None, None)
        with contextlib.ExitStack() as stack, tempfile.TemporaryFile() as errors:
            stack.callback(theirs.close)
            for descriptor in (info_reader, go_reader, go_writer):
                stack.callback(os.close, descriptor)
            sources = {path.name: _memory_file(path.read_bytes()) for path in sorted(_GUEST.glob("*.py"))}
            for descriptor in sources.values():
                stack.callback(os.close, descriptor)
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own command line
                    [program, *_arguments(rootfs, store, sources, theirs.fileno(), info_writer, go)],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(theirs.fileno(), info_writer, go_reader, *sources.values()),
                    cwd="/",
                    user=user,
                    group=user,
                    extra_groups=None if user is None else [],
                )
            except (OSError, subprocess.SubprocessError) as error:
                self._control.close()
                raise SandboxUnavailableError(f"cannot start {program}: {error}") from error
            finally:
                os.close(info_writer)
            theirs.close()
            self._first = self._open_first(info_reader, users)
            os.write(go_writer, b"g")
            if not self._ready():
                self.close()
                errors.seek(0)
                message = errors.read().decode(errors="replace").strip()[-2000:]
                raise SandboxUnavailableError(
                    f"bubblewrap does not work on this host: {message or 'no reason given'}; {FORBIDDEN}"
                )

    @property
    def alive(self) -> bool:
        """Whether it accepts requests; its last message says that the warm interpreter ended."""
        if self._first is None or self.silent:
            return False
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        return not poller.poll(0) and self._process.poll() is None

    def submit(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Submit one execution: see `guest.supervisor.supervise`.

        Raises:
          SandboxError: the warm sandbox is gone.
        """
        try:
            with self._lock:
                socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        except OSError as error:
            raise SandboxError(f"the warm sandbox is gone: {error}") from error

    def close(self) -> None:
        """Kill the sandbox and everything in it. Idempotent."""
        self._control.close()
        if self._first is not None:
            # The first process of its pid namespace: the kernel ends all the others with it.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            os.close(self._first)
            self._first = None
        self._process.kill()
        self._process.wait()

    def _open_first(self, info_reader: int, users: Users | None) -> int | None:
        """Return a descriptor of the sandbox's first process, or None if bubblewrap ended before starting it.

        With `users`, the process waits for its user-id map, which only root can write.
        """
        info = b""
        while not info.endswith(b"}\n") and (chunk := os.read(info_reader, 4096)):
            info += chunk
        with contextlib.suppress(ValueError, KeyError, OSError):
            pid = json.loads(info)["child-pid"]
            first = os.pidfd_open(pid)
            if users:
                _map_users(pid, users.first)
            return first
        return None

    def _ready(self) -> bool:
        self._control.settimeout(_START_SECONDS)
        try:
            return self._control.recv(4096) == b"ready"
        except OSError:
            return False
        finally:
            self._control.settimeout(None)


def _map_users(pid: int, first: int) -> None:
    """Give a process's user namespace its map: BLOCK user ids and one group id from `first` on.

    The kernel takes a map from the owner of the namespace or from a process with CAP_SYS_ADMIN. Root without that
    capability, as in a container, lets the owner write it, with the capability to map ids that are not the owner's.

    Raises:
      OSError: the map cannot be written.
    """
    maps = {"uid_map": f"0 {first} {BLOCK}", "gid_map": f"0 {first} 1"}
    for name, text in maps.items():
        try:
            Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")
        except PermissionError:
            needed = "+setuid,+setgid"
            owner = [f"--reuid={first}", f"--regid={first}", "--clear-groups"]
            command = ["setpriv", *owner, f"--inh-caps={needed}", f"--ambient-caps={needed}", "sh", "-c"]
            write = [*command, 'printf "%s" "$2" >"$1"', "sh", f"/proc/{pid}/{name}", text]
            subprocess.run(write, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
            if not Path(f"/proc/{pid}/{name}").read_text(encoding="ascii").strip():
                raise


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("mlagent-inside", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _arguments(
    rootfs: Path, store: Path, sources: dict[str, int], control: int, info: int, go: int | None
) -> list[str]:
    """Return the command line of bwrap after its name."""
    arguments = ["--unshare-all", "--unshare-user", "--hostname", "sandbox", "--new-session", "--info-fd", str(info)]
    if go is not None:
        arguments += ["--userns-block-fd", str(go)]
    # Root in its own user namespace only: required to make namespaces for the executions.
    arguments += ["--uid", "0", "--gid", "0", "--cap-add", "ALL"]
    arguments += ["--ro-bind", str(rootfs), "/", "--ro-bind", str(store), "/store"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", _MOUNTED]  # noqa: S108
    for name, descriptor in sources.items():
        arguments += ["--perms", "0444", "--ro-bind-data", str(descriptor), f"{_MOUNTED}/{_PACKAGE}/{name}"]
    arguments += ["--remount-ro", _MOUNTED, "--chdir", "/", "--clearenv"]
    for name, value in environment(seed=0).items():
        arguments += ["--setenv", name, value]
    # -P: no imports from the current directory; -s: none from the user's site-packages.
    return [*arguments, "/usr/local/bin/python3", "-P", "-s", "-c", _MAIN, str(control)]
