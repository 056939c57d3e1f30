"""Progress of a stage: one live line on a terminal, a plain line every few seconds in a log.

    with Progress("rl", total=16) as progress:
        for _ in range(16):
            ...
            progress.update(reward=0.41, kl=0.002)

Each update redraws in the caller's thread (no thread is started), so that a stage that hangs shows as hanging. During a
long step `update(advance=0)` refreshes the display. With `path` the progress is also written to a small file, for the
report of a running run.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Self

from etils import epath
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlagent_jax.runtime.files import write_whole

log = logging.getLogger(__name__)

LIVE_INTERVAL_SECONDS = 0.1
WINDOW_SECONDS = 120.0
"""Window of the rate, so that it follows when steps become slower."""
WINDOW_UPDATES = 8
"""Minimum updates in that window, for slow steps."""
STILL_SECONDS = 60.0
"""Time between lines of a log while nothing is completed."""
FILE = "progress.json"
FILE_INTERVAL_SECONDS = 2.0
"""Time between writes of the file; object stores are written less often."""
REMOTE_FILE_INTERVAL_SECONDS = 15.0
SMOOTHING = 0.8
"""Weight of the past in the running means, per update."""


def duration(seconds: float) -> str:
    """Format `seconds` for people: 7s, 3m07s, 2h05m, 3d04h."""
    if not math.isfinite(seconds):
        return "?"
    total = round(seconds)
    for unit, small, size, part in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if total >= size:
            return f"{total // size}{unit}{total % size // part:02d}{small}"
    return f"{total}s"


def _rate_text(rate: float | None, unit: str) -> str:
    """Format units per second, or seconds per unit if the rate is below 1."""
    if not rate:
        return f"? {unit}/s"
    return f"{rate:.3g} {unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"


class Progress:
    """Progress of one stage of `total` units of work (None: unknown).

    `done` units were done by the run that this one resumes; they count as progress, not towards the rate. Values given
    to `update` are shown as running means (exponential, `smoothing` is the weight of the past), or with a smoothing of
    1 as means over all updates, which are the report's.
    """

    def __init__(
        self,
        stage: str,
        total: int | None,
        *,
        unit: str = "step",
        done: int = 0,
        console: Console | None = None,
        interval_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        path: epath.PathLike | None = None,
        smoothing: float = SMOOTHING,
    ) -> None:
        if total is not None and total < 0:
            raise ValueError(f"total of stage {stage!r} is {total}: give the number of units, or None if unknown")
        self.stage, self.total, self.done = stage, total, done
        self._unit, self._smoothing = unit, smoothing
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._start = clock()
        self._recent = collections.deque([(self._start, done)])
        self._weighted: dict[str, tuple[float, float]] = {}  # name -> (weighted sum, weights): unbiased from the start
        self._shown, self._shown_done = -math.inf, -1
        self._path = None if path is None else epath.Path(path)
        self._filed = -math.inf
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        # Without auto_refresh, rich starts no thread.
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if live else None
        self._interval = LIVE_INTERVAL_SECONDS if live else interval_seconds

    @property
    def values(self) -> Mapping[str, float]:
        """Return the running means of the values given to `update`."""
        return {name: total / weight for name, (total, weight) in self._weighted.items()}

    @property
    def rate(self) -> float | None:
        """Return recent units per second; None before the first is done."""
        (before, first), (now, last) = self._recent[0], self._recent[-1]
        return (last - first) / (now - before) if last > first and now > before else None

    @property
    def eta_seconds(self) -> float | None:
        """Return the estimated time to the end; None if unknown."""
        rate = self.rate
        return None if self.total is None or rate is None else max(0, self.total - self.done) / rate

    def update(self, advance: int = 1, **values: float) -> None:
        """Report `advance` more units, with these values (NaN is left out of the running means)."""
        now = self._clock()
        self.done += advance
        if advance:
            self._recent.append((now, self.done))
            while len(self._recent) > WINDOW_UPDATES and now - self._recent[1][0] > WINDOW_SECONDS:
                self._recent.popleft()
        for name, value in values.items():
            if math.isfinite(value := float(value)):
                total, weight = self._weighted.get(name, (0.0, 0.0))
                self._weighted[name] = (self._smoothing * total + value, self._smoothing * weight + 1.0)
        still = self._live is None and self.done == self._shown_done  # a log needs no line twice
        if now - self._shown >= (max(self._interval, STILL_SECONDS) if still else self._interval):
            self._show(now)
        self._file(now, "running")

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        self._show(self._clock())
        self._file(self._clock(), "running")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live:
            self._live.stop()
        self._filed = -math.inf
        self._file(self._clock(), "stopped" if kind else "done")
        took = duration(self._clock() - self._start)
        end = f"stopped ({kind.__name__}) after" if kind else "done in"
        means = "  (running means)" if self._weighted and self._smoothing < 1 else ""
        line = f"{self._head()}  {end} {took}{self._value_text()}{means}"
        self._print(line)
        log.debug("%s", line)

    def _head(self) -> str:
        if self.total is None:
            return f"[{self.stage}] {self.done} {self._unit}s"
        percent = f" ({100 * self.done / self.total:.0f}%)" if self.total else ""
        return f"[{self.stage}] {self.done}/{self.total}{percent}"

    def _pace(self) -> str:
        eta = self.eta_seconds
        left = "" if self.total is None else f"  ETA {'?' if eta is None else duration(eta)}"
        return f"{_rate_text(self.rate, self._unit)}{left}"

    def _value_text(self) -> str:
        return "".join(f"  {name} {value:.4g}" for name, value in self.values.items())

    def _file(self, now: float, state: str) -> None:
        """Write the file, rate-limited. It is a convenience: a failed write is ignored."""
        if self._path is None:
            return
        remote = "://" in str(self._path)
        if now - self._filed < (REMOTE_FILE_INTERVAL_SECONDS if remote else FILE_INTERVAL_SECONDS):
            return
        self._filed = now
        status = {
            "stage": self.stage,
            "state": state,
            "done": self.done,
            "total": self.total,
            "unit": self._unit,
            "seconds": round(now - self._start, 1),
            "rate": self.rate,
            "eta_seconds": self.eta_seconds,
            "values": dict(self.values),
            "written": time.time(),
        }
        with contextlib.suppress(OSError):
            write_whole(self._path, json.dumps(status))

    def _print(self, line: str) -> None:
        # Stage and value names are data: no markup, no highlighting, and no wrapped log lines.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self, now: float) -> None:
        self._shown, self._shown_done = now, self.done
        if self._live is None:
            self._print(f"{self._head()}  {self._pace()}{self._value_text()}")
            return
        row = Table.grid(padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(width=24)
        row.add_column(overflow="ellipsis", no_wrap=True)
        bar = ProgressBar(total=self.total, completed=self.done, pulse=self.total is None, animation_time=now)
        elapsed = duration(now - self._start)
        row.add_row(_plain(self._head()), bar, _plain(f"{self._pace()}  {elapsed} elapsed{self._value_text()}"))
        self._live.update(row, refresh=True)


def _plain(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
