"""The speed of this host, so that a CPU limit stops the same scripts on every host.

    fixed work in the sandbox -> its CPU seconds -> slowdown against the reference host -> limit times slowdown

CPU seconds are not equal work: they do less on a slow processor, and on one whose caches and hyper-threads are shared.
Limits are in seconds of the reference host. A faster host keeps them unchanged.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from environments.protocol import Limits
from environments.sandbox.base import Ending, Execution, Sandbox, SandboxError

REFERENCE_SECONDS = 0.018
"""CPU seconds of one round of the work on the reference host: one core of an AMD EPYC server at 2.6 GHz."""
MOST = 4.0
"""Maximum slowdown that limits follow. A slower host should be fixed by its operator, not by higher limits."""
NOTABLE = 1.15
"""Bound on the ratio of two measurements of one idle host."""
_NEAR = 0.9
"""Share of the CPU limit above which an ending by time counts as near that limit, and not as one by wall time."""
_LIMITS = Limits(cpu_seconds=60.0, wall_seconds=120.0)
_WORK = """
import statistics, time
try:
    import numpy
except ImportError:
    numpy = None

def work():
    started = time.process_time()
    words = {}
    for i in range(60_000):
        words[i % 977] = words.get(i % 977, 0) + i
    sorted(words.values())
    if numpy is not None:
        table = numpy.random.default_rng(0).normal(size=(200, 200))
        for _ in range(6):
            table = table @ table
            table /= abs(table).max()
        numpy.sort(numpy.tile(table.ravel(), 4))
    return time.process_time() - started

work()
print(statistics.median(work() for _ in range(5)))
"""


def work_seconds(sandbox: Sandbox) -> float:
    """Return the CPU seconds of one round of the fixed work in `sandbox` now, the median of five.

    Raises:
      SandboxError: the sandbox failed, or its Python did.
    """
    with tempfile.TemporaryDirectory(prefix="mlagent-speed-") as folder:
        workspace = Path(folder) / "workspace"
        workspace.mkdir()
        (workspace / "work.py").write_text(_WORK, encoding="utf-8")
        done = sandbox.run(workspace, "work.py", _LIMITS)
    try:
        return float(done.stdout)
    except ValueError:
        raise SandboxError(f"the speed of this host cannot be measured: {done.detail} {done.stderr[-500:]}") from None


class HostSpeed:
    """Slowdown of this host, measured on construction; `now` measures again."""

    def __init__(self, measure: Callable[[], float]) -> None:
        """Measure the slowdown.

        Args:
          measure: function that returns the seconds of a round of work, `lambda: work_seconds(sandbox)`.
        """
        self._measure = measure
        self.slowdown = self.now()

    @property
    def is_slow(self) -> bool:
        """Whether the slowdown should be reported to an operator."""
        return self.slowdown > NOTABLE

    def now(self) -> float:
        """Measure how many times more CPU seconds the work takes here than on the reference host, from 1 to `MOST`."""
        return min(MOST, max(1.0, self._measure() / REFERENCE_SECONDS))

    def again(self, execution: Execution, limits: Limits) -> float | None:
        """Return the slowdown with which to repeat an execution, or None if its ending stands.

        Args:
          execution: execution that ran under `scaled(limits, self.slowdown)`.
          limits: limits in seconds of the reference host.
        """
        near = execution.cpu_seconds >= _NEAR * scaled(limits, self.slowdown).cpu_seconds
        if execution.ending is not Ending.TIME_LIMIT or not near:
            return None
        now = self.now()
        return now if now > NOTABLE * self.slowdown else None


def scaled(limits: Limits, slowdown: float, spent_seconds: float = 0.0) -> Limits:
    """Return the limits of an execution on a host with that slowdown.

    Wall time is generous already and not scaled. An earlier attempt's `spent_seconds` are subtracted, so that a step
    takes no longer than its lease allows.
    """
    wall = max(1.0, limits.wall_seconds - spent_seconds)
    return dataclasses.replace(limits, cpu_seconds=limits.cpu_seconds * slowdown, wall_seconds=wall)
