"""First runs of programs, which compile them: timed, counted and logged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging


class FirstRuns:
    """Runs programs, and logs each program's first run with a shape, which compiles it. Shared by a sampler's batches.

    Args:
        dispatch_lock: Lock held while a program is handed to the devices; for callers with programs of their own there.

    Attributes:
        seconds: Total seconds of these first runs.
    """

    def __init__(self, dispatch_lock: contextlib.AbstractContextManager[Any] | None = None) -> None:
        self.seconds = 0.0
        self._seen: set[tuple[object, ...]] = set()
        self._dispatch_lock = dispatch_lock or contextlib.nullcontext()

    @property
    def count(self) -> int:
        """Return the number of programs that were compiled, or loaded from the cache, so far."""
        return len(self._seen)

    def __call__(self, key: tuple[object, ...], program: Callable[..., Any], *args: Any) -> Any:
        """Return `program(*args)`; `key` has the program's name and everything that its shapes depend on."""
        if key in self._seen:
            with self._dispatch_lock:
                return program(*args)
        self._seen.add(key)
        begin = time.perf_counter()
        with self._dispatch_lock:
            result = program(*args)
        jax.block_until_ready(result)
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        logging.info("sampler: first run of %s took %.2f s", " ".join(map(str, key)), seconds)
        return result
