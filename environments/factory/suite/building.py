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
import fcntl
import functools
import json
import multiprocessing
import multiprocessing.util
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
from environments.sandbox.base import Sandbox, SandboxError
from environments.tasks.task import TaskError

LOG = "log.jsonl"
_SAME = 0.6
"""Minimum share of a table's columns that another table has for the two to be copies."""
LEAST_ROWS = 60
"""Minimum number of rows of a table."""
_BATCH = 4
"""Number of candidates in flight a process."""


@dataclasses.dataclass(frozen=True)
class Build:
    """Settings of a build: source, number of tasks, folder, seed, processes, sandbox."""

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
    with log, _Workers(build) as measure:
        for looked, results in _in_order(source, [candidates[place] for place in order], seen, log, measure, build):
            processed += 1
            log.add(looked, results)
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
    """Yield candidates in order with their results; those that are dropped before have one that says why."""
    ahead: list[tuple[_Looked, Any]] = []
    for candidate in candidates:
        looked = log.looked.get(candidate.key) or _look(source, candidate)
        reason = looked.reason
        if not reason and (other := seen.add(candidate.key, looked.columns)):
            reason = f"a copy of {other}"
        if reason:
            ahead.append((looked, [Result(candidate.key, reason)]))
        elif candidate.key in log.done:
            ahead.append((looked, log.done[candidate.key]))
        else:
            raw = looked.raw
            told = dataclasses.replace(candidate, license=raw.license or candidate.license) if raw else candidate
            ahead.append((looked, measure(raw, told)))
        while len(ahead) >= _BATCH * build.jobs:
            yield _settled(*ahead.pop(0))
    while ahead:
        yield _settled(*ahead.pop(0))


def _settled(looked: _Looked, results: Any) -> tuple[_Looked, list[Result]]:
    return looked, results if isinstance(results, list) else results.result()


@dataclasses.dataclass(frozen=True, eq=False)
class _Looked:
    """Candidate that was read and not yet measured."""

    key: str
    reason: str = ""
    """Why it is dropped."""
    columns: tuple[str, ...] = ()
    """Fingerprint of its table."""
    raw: RawTable | None = None


def _look(source: Source, candidate: Candidate) -> _Looked:
    """Read a candidate's table, if it has one."""
    if not candidate.license:
        return _Looked(candidate.key, "license unknown")
    if candidate.task:
        return _Looked(candidate.key)
    try:
        raw = source.read(candidate)
        if len(raw.cells) < LEAST_ROWS:
            return _Looked(candidate.key, f"fewer than {LEAST_ROWS} rows")
        return _Looked(candidate.key, "", fingerprint(raw), raw)
    except TaskError as error:
        return _Looked(candidate.key, f"unreadable: {str(error)[:120]}")
    except Exception as error:  # One odd table ends no build of hundreds.
        return _Looked(candidate.key, f"unreadable: {type(error).__name__} {str(error)[:120]}")


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
        self.looked: dict[str, _Looked] = {}
        """Candidates that need not be read again."""
        self._new: dict[str, list[Result]] = {}
        (out / TASKS).mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(identity)
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise TaskError(
                    f"another build writes into {out}: wait for its end, or choose another folder"
                ) from error
            raise

    def _read(self, identity: dict[str, Any]) -> None:
        text = self._path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        try:
            same = not lines or json.loads(lines[0]) == identity
        except ValueError as error:
            raise TaskError(f"the first line of {self._path} is broken: delete the file to build anew") from error
        if not same:
            raise TaskError(f"{self._path.parent} holds a suite of {lines[0]}: choose another folder")
        for line in lines[1:]:
            try:
                record = json.loads(line)
            except ValueError:  # The build was stopped while it wrote the line.
                continue
            key = record["key"]
            self.done[key] = [Result(**result) for result in record["results"]]
            self.looked[key] = _Looked(key, record["reason"], tuple(record["columns"]))
        self._head = json.dumps(identity) + "\n" if not lines else "" if text.endswith("\n") else "\n"

    def __enter__(self) -> _Log:
        self._file.write(self._head)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, looked: _Looked, results: list[Result]) -> None:
        self._new[looked.key] = results
        if looked.key not in self.done:
            record = {"key": looked.key, "reason": looked.reason, "columns": looked.columns}
            record["results"] = [dataclasses.asdict(result) for result in results]
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def results(self) -> list[Result]:
        return [result for results in self._new.values() for result in results]


def _write_index(out: Path, kept: Sequence[dict[str, Any]]) -> None:
    temporary = out / f"{INDEX}.new"
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    os.replace(temporary, out / INDEX)


@dataclasses.dataclass
class _Workers:
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
    multiprocessing.util.Finalize(None, _sandbox.close, exitpriority=10)


def _end_with(parent: int) -> None:
    """End this process once the build that started it was killed; otherwise it would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _measure(folder: str, seed: int, raw: RawTable | None, candidate: Candidate) -> list[Result]:
    try:
        return consider(raw, candidate, Path(folder), _sandbox, seed)
    except SandboxError:
        raise
    except Exception as error:  # One odd table ends no build of hundreds.
        return [Result(candidate.key, f"failed: {type(error).__name__} {str(error)[:120]}")]
