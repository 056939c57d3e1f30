"""Work beside the training loop: one call at a time, in a thread, while the loop waits for outcomes or for the device.

The sampler spends its time waiting for the device, and so does the trainer; each has host work to do meanwhile. In a
thread of its own the next batch is sampled on the weights of the version before while this one is updated.
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
    """Runs a call beside the caller; leaving its context tells the call to stop, and waits for that.

    Args:
      mesh: that of `jax.set_mesh`, which each thread has for itself.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="background-sampler")
        self._call: Future[float] | None = None
        self._stopping = threading.Event()

    def start(self, work: Callable[[Callable[[], bool]], None]) -> None:
        """Begin `work`, which is given what tells it whether to stop early; no other is to be under way."""
        if self._call is not None:
            raise RuntimeError("one call at a time: join the one before")
        self._call = self._threads.submit(self._timed, work)

    def join(self) -> float:
        """Wait for the call, if there is one; its seconds. Raises what it raised."""
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
