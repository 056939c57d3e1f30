"""The pool of this host's GPUs; each is lent to one execution at a time."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence

from environments.sandbox.base import SandboxError

_ASK = ("--query-gpu=uuid", "--format=csv,noheader")
_ASK_SECONDS = 30.0


def nvidia_gpus() -> tuple[str, ...]:
    """Return the ids of this host's NVIDIA GPUs, as the driver's tool lists them; none if it is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listed = subprocess.run(  # noqa: S603 - the driver's own program
            [tool, *_ASK], capture_output=True, text=True, timeout=_ASK_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())


class GpuPool:
    """Lends devices. Thread-safe: a request for more than are free waits."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.count = len(devices)
        self._free = list(devices)
        self._changed = threading.Condition()
        self._closed = False

    @contextlib.contextmanager
    def lease(self, count: int) -> Iterator[tuple[str, ...]]:
        """Yield `count` devices for exclusive use until the context ends.

        Raises:
          SandboxError: this host has fewer, or the pool was closed meanwhile.
        """
        if count > self.count:
            raise SandboxError(
                f"the execution asks for {count} GPUs, and this sandbox has {self.count}: run the worker on a host "
                "with so many (NVIDIA's driver and container toolkit), or ask for fewer"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._free) >= count)
            if self._closed:
                raise SandboxError("this sandbox is closed")
            lent, self._free = tuple(self._free[:count]), self._free[count:]
        try:
            yield lent
        finally:
            with self._changed:
                self._free += lent
                self._changed.notify_all()

    def close(self) -> None:
        """Wake waiting requests, which then fail."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
