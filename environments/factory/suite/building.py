"""Builds a suite: candidates of a source in a drawn order, measured in parallel, until enough are kept.

    DIR/tasks/<name>/   a task's folder each
    DIR/suite.jsonl     the kept tasks, an entry a line (`references`)
    DIR/log.jsonl       the results of every candidate, in order: what makes the build resumable
    DIR/card.md         kinds, sizes, metrics, licenses, reasons of drops

The outcome follows from source and seed: order, duplicates and the end do not depend on the number of processes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from environments.factory.reading import RawTable
from environments.factory.sources import SOURCES, Candidate, Source
from environments.factory.suite.card import write_card
from environments.factory.suite.measuring import Result, consider, fingerprint
from environments.factory.suite.references import INDEX, TASKS
from environments.sandbox import open_sandbox
from environments.sandbox.base import Sandbox
from environments.tasks.task import TaskError

LOG = "log.jsonl"
_SAME = 0.6
"""Minimum share of a table's columns that another table has for the two to be copies."""
_BATCH = 4
"""Number of candidates in flight a process."""


@dataclasses.dataclass(frozen=True)
class Build:
    """What a suite is made of."""

    source: str
    count: int
    out: Path
    seed: int = 0
    jobs: int = 1
    sandbox: str = "bubblewrap"

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a build to be resumed."""
        return {"source": self.source, "seed": self.seed}


def build_suite(build: Build, tell: Callable[[str], None]) -> int:
    """Build or resume a suite; return the number of kept tasks.

    Raises:
      TaskError: the source has nothing, or the folder holds a suite of another source or seed.
      SandboxError: the sandbox failed.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # of the processes that start below
    source = SOURCES.get(build.source)()
    candidates = source.candidates()
    order = np.random.default_rng([build.seed, 0x5717E]).permutation(len(candidates))
    log = _Log(build.out, build.identity())
    seen = _Copies()
    kept: list[dict[str, Any]] = []
    names: set[str] = set()
    processed = 0
    with log, _workers(build) as measure:
        for candidate, dropped, results in _in_order(
            source, [candidates[place] for place in order], seen, log, measure, build
        ):
            processed += 1
            if dropped:
                results = [Result(candidate.key, dropped)]
            log.add(candidate.key, results)
            for result in results:
                if not result.dropped and len(kept) < build.count and result.entry["name"] not in names:
                    names.add(result.entry["name"])
                    kept.append(result.entry)
            if processed % 20 == 0:
                tell(f"{processed} of {len(candidates)} candidates, {len(kept)} tasks kept")
            if len(kept) >= build.count:
                break
    _write_index(build.out, kept)
    write_card(build.out, kept, log.results(), build.identity(), len(candidates))
    tell(f"{len(kept)} tasks kept of {processed} candidates: {build.out / INDEX}, {build.out / 'card.md'}")
    return len(kept)


def _in_order(
    source: Source,
    candidates: Sequence[Candidate],
    seen: _Copies,
    log: _Log,
    measure: Callable[[RawTable | None, Candidate], concurrent.futures.Future[list[Result]]],
    build: Build,
) -> Iterator[tuple[Candidate, str, list[Result]]]:
    """Yield candidates in order with a reason to drop them, or with their results."""
    ahead: list[tuple[Candidate, str, Any]] = []
    for candidate in candidates:
        done = log.done.get(candidate.key)
        reason, raw = _screen(source, candidate, seen)
        if reason:
            ahead.append((candidate, reason, None))
        elif done is not None:
            ahead.append((candidate, "", done))
        else:
            told = dataclasses.replace(candidate, license=raw.license or candidate.license) if raw else candidate
            ahead.append((candidate, "", measure(raw, told)))
        while ahead and len(ahead) >= _BATCH * build.jobs:
            yield _settled(*ahead.pop(0))
    while ahead:
        yield _settled(*ahead.pop(0))


def _settled(candidate: Candidate, reason: str, results: Any) -> tuple[Candidate, str, list[Result]]:
    return candidate, reason, results if isinstance(results, list) or results is None else results.result()


def _screen(source: Source, candidate: Candidate, seen: _Copies) -> tuple[str, RawTable | None]:
    """Return why a candidate is dropped before it is measured, or its table."""
    if not candidate.license:
        return "license unknown", None
    if candidate.task:
        return "", None
    try:
        raw = source.read(candidate)
    except TaskError as error:
        return f"unreadable: {str(error)[:120]}", None
    if len(raw.cells) < 60:
        return "fewer than 60 rows", None
    other = seen.add(candidate.key, fingerprint(raw))
    return (f"a copy of {other}" if other else ""), raw


class _Copies:
    """Tables seen so far, by the digests of their columns."""

    def __init__(self) -> None:
        self._tables: dict[str, list[str]] = {}

    def add(self, key: str, columns: Sequence[str]) -> str:
        """Return an earlier table of which this one is a copy, or remember it and return an empty text."""
        shared: dict[str, int] = {}
        for column in columns:
            for table in self._tables.get(column, ()):
                shared[table] = shared.get(table, 0) + 1
        table, count = max(shared.items(), key=lambda item: item[1], default=("", 0))
        if columns and count >= _SAME * len(columns):
            return table
        for column in columns:
            self._tables.setdefault(column, []).append(key)
        return ""


class _Log:
    """Results by candidate on disk; reading it again resumes a build."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self._path = out / LOG
        self.done: dict[str, list[Result]] = {}
        self._new: dict[str, list[Result]] = {}
        (out / TASKS).mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        if lines and json.loads(lines[0]) != identity:
            raise TaskError(f"{out} holds a suite of {lines[0]}: choose another folder")
        for line in lines[1:]:
            try:
                record = json.loads(line)
            except ValueError:  # The build was stopped while it wrote the line.
                continue
            self.done[record["key"]] = [Result(**result) for result in record["results"]]
        self._head = "" if lines else json.dumps(identity) + "\n"

    def __enter__(self) -> _Log:
        self._file = self._path.open("a", encoding="utf-8")
        self._file.write(self._head)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, key: str, results: list[Result]) -> None:
        self._new[key] = results
        if key not in self.done:
            record = {"key": key, "results": [dataclasses.asdict(result) for result in results]}
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def results(self) -> list[Result]:
        return [result for results in self._new.values() for result in results]


def _write_index(out: Path, kept: Sequence[dict[str, Any]]) -> None:
    temporary = out / f"{INDEX}.new"
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    os.replace(temporary, out / INDEX)


@dataclasses.dataclass
class _workers:  # noqa: N801 - a context manager
    """Processes with a sandbox each."""

    build: Build

    def __enter__(self) -> Callable[[RawTable | None, Candidate], concurrent.futures.Future[list[Result]]]:
        self._pool = concurrent.futures.ProcessPoolExecutor(
            self.build.jobs, multiprocessing.get_context("spawn"), initializer=_open, initargs=(self.build.sandbox,)
        )
        return functools.partial(self._pool.submit, _measure, str(self.build.out / TASKS), self.build.seed)

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


_sandbox: Sandbox


def _open(name: str) -> None:
    global _sandbox
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _sandbox = open_sandbox(name)


def _end_with(parent: int) -> None:
    """End this process once the build that started it was killed; otherwise it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _measure(folder: str, seed: int, raw: RawTable | None, candidate: Candidate) -> list[Result]:
    return consider(raw, candidate, Path(folder), _sandbox, seed)
