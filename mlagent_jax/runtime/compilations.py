"""Number and duration of XLA compilations, so that a shape that changes every step is noticed."""

from __future__ import annotations

import collections
import logging

import jax

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
