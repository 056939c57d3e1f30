"""Where the seconds of a training loop go: spans by name for the report, and traces of chosen steps for a profiler.

`timeline.jsonl` in the workdir has one record per iteration: `{"stage", "step", "spans": [[name, start, end] ...]}`,
times in seconds since the epoch, as the queue's. A span is also an annotation in a trace. The trace of a step listed in
`config.profile` is in `profile/<stage>-<step>` of the workdir: TensorBoard opens the folder (plug-in `xprof`),
https://ui.perfetto.dev the file `perfetto_trace.json.gz` in it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from mlagent_jax.runtime import jsonl

FILE = "timeline.jsonl"

log = logging.getLogger(__name__)


class Timeline:
    """Spans of the current iteration, from any thread.

    Args:
      path: File for the records; None: none are written.
      folder: Local folder for traces.
      traced: Steps to trace, by stage.
    """

    def __init__(self, path: epath.Path | None, folder: Path, traced: Mapping[str, Collection[int]]) -> None:
        self._path, self._folder, self._traced = path, folder, traced
        self._spans: list[list[Any]] = []
        self._lock = threading.Lock()
        self._file: jsonl.Appender | None = None
        self._tracing: Path | None = None

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the time of a section."""
        started = time.time()
        try:
            with jax.profiler.TraceAnnotation(name):
                yield
        finally:
            with self._lock:
                self._spans.append([name, round(started, 4), round(time.time(), 4)])

    def begin(self, stage: str, step: int) -> None:
        """Start the trace of a step, if it is to be traced."""
        if step in self._traced.get(stage, ()) and self._tracing is None:
            self._tracing = self._folder / f"{stage}-{step}"
            jax.profiler.start_trace(self._tracing, create_perfetto_trace=True)

    def end(self, stage: str, step: int) -> None:
        """End a step: write its spans, and its trace."""
        self._stop_trace()
        with self._lock:
            spans, self._spans = self._spans, []
        if self._path is None or not spans:
            return
        if self._file is None:
            self._file = jsonl.Appender(self._path)
        self._file.append({"stage": stage, "step": step, "spans": spans})

    def close(self) -> None:
        """End the trace that an error interrupted, and close the file."""
        self._stop_trace()
        if self._file is not None:
            self._file.close()

    def _stop_trace(self) -> None:
        if self._tracing is None:
            return
        folder, self._tracing = self._tracing, None
        jax.profiler.stop_trace()
        log.info("the trace is in %s", folder)
