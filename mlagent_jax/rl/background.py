"""Background sampling: one call at a time, in a thread, while the training loop waits for outcomes or the device.

Sampler and trainer both wait for the device, and both have host work. The thread samples the next batch with the
previous policy version while the trainer updates.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import jax
from jax.sharding import Mesh


class BackgroundSampler:
    """Runs one call in a thread; leaving the context asks the call to stop, and waits for it.

    Args:
      mesh: mesh for `jax.set_mesh`, which is per thread.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="background-sampler")
        self._call: Future[float] | None = None
        self._stopping = threading.Event()

    def start(self, work: Callable[[Callable[[], bool]], None]) -> None:
        """Start `work`, whose argument returns whether to stop early. No other call may be in flight."""
        if self._call is not None:
            raise RuntimeError("one call at a time: join the one before")
        self._call = self._threads.submit(self._timed, work)

    def join(self) -> float:
        """Wait for the call, if there is one; return its seconds. Raises what the call raised."""
        call, self._call = self._call, None
        return 0.0 if call is None else call.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._threads.shutdown(cancel_futures=True)

    def _timed(self, work: Callable[[Callable[[], bool]], None]) -> float:
        started = time.monotonic()
        with jax.set_mesh(self._mesh):
            work(self._stopping.is_set)
        return time.monotonic() - started
