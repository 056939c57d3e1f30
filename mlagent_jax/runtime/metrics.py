"""Metrics of a run: `metrics.jsonl` for the report and scripts, and TensorBoard event files.

The trainer's process 0 holds one `MetricsLog`, writes one record per training step, and after a crash rewinds it to the
checkpoint it resumes from. A record is `{"stage", "step", "seconds" since the run's start, <scalar name>: float ...}`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import register_writer_factory

from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.trackers import Follower

FILE = "metrics.jsonl"
RESERVED = frozenset({"stage", "step", "seconds"})


def _number(value: Any) -> float | str:
    """Return `value` as JSON: a finite float unchanged, otherwise "nan", "inf" or "-inf", which `float` parses."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Return the records of the run in `workdir`, in order; scalars are floats (NaN and inf included).

    Raises:
      RecordError: A line before the last is broken.
    """
    path = epath.Path(workdir) / FILE
    records = []
    for record in jsonl.read(path):
        missing = RESERVED - set(record)
        if missing:
            raise jsonl.RecordError(f"{path}: a record lacks {min(missing)!r}: {record}; delete that line")
        scalars = {name: float(value) for name, value in record.items() if name not in RESERVED}
        records.append({"stage": record["stage"], "step": record["step"], "seconds": record["seconds"], **scalars})
    return records


class MetricsLog:
    """Writer of a run's metrics to its workdir (a local path or a URL).

    A record has left this process when `write` returns: a crash loses none. Seconds continue from the last record of an
    earlier process, so that curves over time have no gap for the time between the processes.
    """

    def __init__(self, workdir: epath.PathLike, clock: Callable[[], float] = time.monotonic) -> None:
        self._workdir = epath.Path(workdir)
        self._clock = clock
        self._boards: dict[str, _Board] = {}
        self._followers: list[Follower] = []
        self._file = jsonl.Appender(self._workdir / FILE)
        self._start = clock() - max((record["seconds"] for record in self.read()), default=0.0)

    def add_followers(self, followers: Sequence[Follower]) -> None:
        """Send every record to these followers too, from now on; `close` closes them."""
        self._followers += followers

    def write(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        """Record `scalars` (anything that `float` accepts, device arrays included) of `step` of `stage`.

        Raises:
          ValueError: A scalar is called `stage`, `step` or `seconds`.
        """
        if clash := RESERVED & set(scalars):
            raise ValueError(f"a scalar is called {min(clash)!r}, which is reserved in every record: rename it")
        values = {name: _number(value) for name, value in scalars.items()}
        seconds = round(self._clock() - self._start, 3)
        self._file.append({"stage": stage, "step": int(step), "seconds": seconds, **values})
        floats = {name: float(value) for name, value in values.items()}
        self._board(stage).write(int(step), floats)
        for follower in self._followers:
            follower.add({"stage": stage, "step": int(step), "seconds": seconds, **floats})

    def read(self) -> list[dict[str, Any]]:
        """Return all records so far (see the module's `read`)."""
        return read(self._workdir)

    def rewind(self, stage: str, step: int) -> int:
        """Delete the records of `stage` after `step`, the step of the checkpoint that the run resumes from.

        Returns the number of deleted records. Other stages are unchanged. TensorBoard hides the deleted steps.
        """
        records = jsonl.read(self._workdir / FILE)
        kept = [record for record in records if record["stage"] != stage or record["step"] <= step]
        if len(kept) < len(records):
            self._file.close()
            jsonl.replace(self._workdir / FILE, kept)
            self._file = jsonl.Appender(self._workdir / FILE)
            self._board(stage).purge(step + 1)
        return len(records) - len(kept)

    def close(self) -> None:
        self._file.close()
        for board in self._boards.values():
            board.close()
        for follower in self._followers:
            follower.close()
        self._followers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _board(self, stage: str) -> _Board:
        if stage not in self._boards:
            self._boards[stage] = _Board(self._workdir / "tensorboard" / stage)
        return self._boards[stage]


class NoMetrics:
    """`MetricsLog` of all processes but the first, which writes for all."""

    def write(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        """Do nothing."""

    def rewind(self, stage: str, step: int) -> int:
        """Return 0: there is nothing to delete."""
        return 0

    def close(self) -> None:
        """Do nothing."""


class _Board:
    """TensorBoard event files of one stage (stages count their own steps, so each is a TensorBoard run).

    Uses tensorboardX's event writer instead of its `SummaryWriter`, which queues to a thread and can lose the last
    records.
    """

    def __init__(self, directory: epath.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Process and time in the name: a run killed and restarted within a second must not overwrite the file.
        suffix = f".{os.getpid()}.{time.time_ns()}"
        self._writer = EventsWriter(os.fspath(directory / "events"), suffix)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def purge(self, step: int) -> None:
        """Hide records of `step` and later."""
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=step, session_log=start))

    def close(self) -> None:
        self._writer.close()

    def _add(self, event: Event) -> None:
        self._writer.write_event(event)
        self._writer.flush()


class _ObjectWriter:
    """Event file in an object store, rewritten at every flush, because such a store cannot append. From a MiB on it
    goes on in a next file, which TensorBoard reads after it."""

    def __init__(self, path: str) -> None:
        self._first, self._number = path, 0
        self._path = epath.Path(path)
        self._data = b""

    def write(self, data: bytes) -> None:
        self._data += data

    def flush(self) -> None:
        self._path.write_bytes(self._data)
        if len(self._data) >= jsonl.PART_BYTES:
            self._number += 1
            self._path, self._data = epath.Path(f"{self._first}.{self._number:05d}"), b""

    def close(self) -> None:
        if self._data:
            self.flush()


class _ObjectStore:
    """Filesystem for tensorboardX; its own ones need client libraries that fsspec does not."""

    def directory_check(self, path: str) -> None:
        """Do nothing: object stores have no folders."""

    def open(self, path: str) -> _ObjectWriter:
        return _ObjectWriter(path)


for _scheme in ("gs", "s3", "az"):
    register_writer_factory(_scheme, _ObjectStore())
