"""XLA's compilations: where compiled programs are kept, and how many a run takes, so that a shape that changes every
step is noticed."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from mlagent_jax.runtime import processes

EVENT = "/jax/core/compile/backend_compile_duration"
LONG_SECONDS = 1.0
"""Minimum seconds of a compilation that is logged; shorter ones are only counted."""

log = logging.getLogger(__name__)


class Compilations:
    """Listener to JAX's compilations, for the lifetime of the process (JAX has no public way to unregister it)."""

    def __init__(self) -> None:
        self._seconds: collections.Counter[str] = collections.Counter()
        self._count: collections.Counter[str] = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._record)

    def take(self) -> dict[str, float]:
        """Return number and total seconds of the compilations since the last call."""
        totals = {"compilations": sum(self._count.values()), "compile_seconds": sum(self._seconds.values())}
        self._count.clear()
        self._seconds.clear()
        return totals

    def _record(self, event: str, seconds: float, **facts: str | int) -> None:
        if event != EVENT:
            return
        name = str(facts.get("fun_name", "?"))
        self._count[name] += 1
        self._seconds[name] += seconds
        if seconds >= LONG_SECONDS:
            log.info("compiled %s in %.1f s (time %d of this stage)", name, seconds, self._count[name])


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Keep compiled programs in a local folder and find them there, so that a run started again compiles nothing twice.

    A folder that the user named ($JAX_COMPILATION_CACHE_DIR) stays in use. Several processes on CPUs keep nothing: the
    cache serves the first alone, and the others' collectives would not wait that long.
    """
    alone = processes.count() == 1 or jax.default_backend() != "cpu"
    if jax.config.jax_compilation_cache_dir or not alone:
        yield
        return
    _use(os.fspath(folder))
    try:
        yield
    finally:
        _use(None)


def _use(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # it is opened once, with the folder of that time
