"""How often and how long XLA compiled: a shape that changes from step to step shows here before it shows on a bill."""

from __future__ import annotations

import collections
import logging

import jax

EVENT = "/jax/core/compile/backend_compile_duration"
LONG_SECONDS = 1.0
"""Compilations at least so long are logged one by one, shorter ones only counted."""

log = logging.getLogger(__name__)


class Compilations:
    """Listens to JAX's compilations for as long as the process lives (JAX has no public way to stop listening)."""

    def __init__(self) -> None:
        self._seconds: collections.Counter[str] = collections.Counter()
        self._count: collections.Counter[str] = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def take(self) -> dict[str, float]:
        """Compilations since the last call: their number, and seconds in all."""
        found = {"compilations": sum(self._count.values()), "compile_seconds": sum(self._seconds.values())}
        self._count.clear()
        self._seconds.clear()
        return found

    def _heard(self, event: str, seconds: float, **facts: str | int) -> None:
        if event != EVENT:
            return
        name = str(facts.get("fun_name", "?"))
        self._count[name] += 1
        self._seconds[name] += seconds
        if seconds >= LONG_SECONDS:
            log.info("compiled %s in %.1f s (time %d of this stage)", name, seconds, self._count[name])
