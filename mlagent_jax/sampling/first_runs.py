"""The first run of each program, which compiles it: timed, counted and logged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging


class FirstRuns:
    """Runs programs, and logs each one's first run with a shape, which compiles it. Shared by the batches of a sampler.

    Args:
        dispatch_lock: Lock held while a program is handed to the devices; for callers with programs of their own there.

    Attributes:
        seconds: what those first runs took in all.
    """

    def __init__(self, dispatch_lock: contextlib.AbstractContextManager[Any] | None = None) -> None:
        self.seconds = 0.0
        self._seen: set[tuple[object, ...]] = set()
        self._dispatch_lock = dispatch_lock or contextlib.nullcontext()

    @property
    def count(self) -> int:
        """Programs that were compiled, or found compiled, so far."""
        return len(self._seen)

    def __call__(self, key: tuple[object, ...], program: Callable[..., Any], *args: Any) -> Any:
        """`program(*args)`; `key` names the program and whatever its shapes follow from."""
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
