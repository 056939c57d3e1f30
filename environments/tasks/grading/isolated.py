"""Graders that run other people's code, each in its own warm process with limits of time and memory.

    the submission is scored                   its score
    the grader refuses it                      InvalidSubmissionError: the policy's fault
    the grader raises, hangs or dies           retry with a submission that it has scored before (the control):
        the control is scored, and the         InvalidSubmissionError: the submission breaks the grader submission fails
        again the control fails too                  GraderError: our fault

A process whose grader failed is not reused. Idle processes end by themselves, so that a host that grades many tasks
does not keep one for each.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from environments.tasks.task import GraderError, GraderLimitError, InvalidSubmissionError, TaskError

CONTROL = "control.csv"
"""File beside private/ with a submission that the grader has scored, the starting script's."""
SECONDS = 90.0
"""Time limit for loading a grader, and for one request.

A lease has time for two requests and a control in addition to the execution.
"""
MEMORY_BYTES = 8 << 30
"""Maximum address space of a grader, in bytes."""
_GRACE_SECONDS = 10.0
_SAID_LETTERS = 2000
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from environments.tasks.grading.process import main; main(*sys.argv[2:])"
)
_log = logging.getLogger("mlagent.grading")


class IsolatedGrader:
    """Grader of a prepared task (`graders.Grader`). Thread-safe: each request has a process to itself."""

    def __init__(
        self,
        private: Path,
        load: Callable[[Path], Any],
        seconds: float = SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Create the grader without starting a process.

        Args:
          private: the task's private/ folder.
          load: function of a module that makes the grader of `private`. Its processes call it by its name. This process
            calls it too, for `rows`, `kinds` and `labels`: it must not execute the task's code.
          seconds: time limit for loading the grader, and for each request.
          memory_bytes: maximum address space of each process.
        """
        self._private, self._load = private.resolve(), load
        self._loader = f"{load.__module__}:{load.__qualname__}"
        self._limits = (seconds, memory_bytes)
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._control: bytes | None = None
        weakref.finalize(self, _kill_all, self._idle)

    @functools.cached_property
    def in_process(self) -> Any:
        """Grader in this process, used only to read the answers."""
        return self._load(self._private)

    @property
    def rows(self) -> int:
        return self.in_process.rows

    @property
    def kinds(self) -> dict[str, str]:
        return self.in_process.kinds

    def labels(self) -> dict[str, list[str]]:
        return self.in_process.labels()

    def grade(self, submission: bytes, half: str) -> float:
        """Return the metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: the grader refuses it, or it alone makes the grader fail.
          GraderLimitError: it alone makes the grader exceed a limit.
          GraderError: the grader fails for another reason.
        """
        try:
            return self._judged(submission, half)
        except GraderError as error:
            tell(self._private.parent.name, error, "host")
            raise

    def official(self, submission: bytes) -> dict[str, Any]:
        """Return the report of the task's benchmark on a submission.

        Raises:
          InvalidSubmissionError: the grader refuses it.
          GraderError: the grader fails.
        """
        return self._ask("official", submission)

    def resampled(self, submission: bytes, draws: int, seed: int) -> list[list[float | None]] | None:
        """Return scores on resamples of the reward half (see `FolderTask.resampled`); None if the grader has none."""
        if not hasattr(self.in_process, "resampled"):
            return None
        return self._ask(f"resampled:{draws}:{seed}", submission)

    def close(self) -> None:
        """End all processes; requests in flight fail with a GraderError."""
        with self._lock:
            self._closed = True
            processes = [*self._idle, *self._busy]
        _kill_all(processes)

    def _judged(self, submission: bytes, half: str) -> float:
        try:
            score = self._ask(half, submission)
        except GraderError as error:
            if error.host or not self._scores_control(half, error):
                raise
        else:
            self._control = self._control or submission
            return score
        try:
            return self._ask(half, submission)
        except GraderError as error:
            if error.host:
                raise
            tell(self._private.parent.name, error, "submission")
            refusal = GraderLimitError if error.limit else InvalidSubmissionError
            raise refusal(f"the grader cannot score it ({error.kind})") from error

    def _scores_control(self, half: str, error: GraderError) -> bool:
        """Check whether the grader still scores the control.

        Without a control, an exception is taken for the submission's fault, a limit for this host's.
        """
        control = self._control
        with contextlib.suppress(OSError):
            control = (self._private.parent / CONTROL).read_bytes()
        if control is None:
            return not error.limit
        try:
            self._ask(half, control)
        except (GraderError, InvalidSubmissionError):
            return False
        return True

    def _ask(self, what: str, submission: bytes) -> Any:
        while True:
            with self._lock:
                if self._closed:
                    raise GraderError("the grader was stopped", kind="stopped", host=True)
                process = self._idle.pop() if self._idle else None
                warm = process is not None
                process = process or _Process(
                    self._private, f"{self._load.__module__}:{self._load.__qualname__}", *self._limits
                )
                self._busy.add(process)
            keep = False
            try:
                answer = process.ask(what, submission)
                keep = answer is not None and "raised" not in answer
            finally:
                with self._lock:
                    self._busy.discard(process)
                    keep = keep and not self._closed
                    if keep:
                        self._idle.append(process)
                if not keep:
                    process.kill()
            if answer is not None:
                break
            if not (warm and process.status == 0):  # An idle process may end just when a request arrives.
                raise process.death()
        if "refused" in answer:
            raise InvalidSubmissionError(answer["refused"])
        if "raised" in answer:
            kind, details = answer["raised"], f"{process.said()}{answer['details']}"
            message = f"the grader raised {kind} in {answer['where']}"
            raise GraderError(message, details, kind=kind, host=answer["host"], limit=kind == "MemoryError")
        return answer["value"]


class _Process:
    """One grader process. It handles one request at a time, from one thread."""

    def __init__(self, private: Path, load: str, seconds: float, memory_bytes: int) -> None:
        self._seconds = seconds
        self._socket, theirs = socket.socketpair()
        # The process ends itself at a limit; this time-out covers processes that it leaves running.
        self._socket.settimeout(2 * seconds + _GRACE_SECONDS)
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process

        command = [sys.executable, "-I", "-u", "-c", _START, json.dumps(_import_path())]
        arguments = [str(private), str(theirs.fileno()), str(seconds), str(memory_bytes), load]
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*command, *arguments],
                cwd=private,
                env={**threads, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def ask(self, what: str, submission: bytes) -> dict[str, Any] | None:
        """Return the answer, or None if the process ended instead."""
        self._said.truncate(0)
        request = json.dumps({"what": what, "bytes": len(submission)}).encode()
        line = b""
        with contextlib.suppress(OSError):
            self._socket.sendall(request + b"\n" + submission)
            with self._socket.makefile("rb") as stream:
                line = stream.readline()
        if line.endswith(b"\n"):
            return json.loads(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return None

    def said(self) -> str:
        """Return the end of the grader's output."""
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _SAID_LETTERS))
        return self._said.read().decode(errors="replace")

    def death(self) -> GraderError:
        """Return an error that explains why there is no answer."""
        if self.status in (-signal.SIGALRM, -signal.SIGKILL):
            late = self.status == -signal.SIGALRM
            message = f"the grader took longer than {self._seconds:g} seconds" if late else "the grader was killed"
            return GraderError(message, self.said(), kind="time limit" if late else "killed", limit=True)
        message = f"the grader ended with status {self.status} and no result"
        return GraderError(message, self.said(), kind=f"status {self.status}", limit=True)

    def kill(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()


def _kill_all(processes: list[_Process]) -> None:
    for process in processes:
        process.kill()


def _import_path() -> list[str]:
    """Return the import path of graders: this process's, without its starting folder.

    That may be a task's folder, whose files may be named like libraries.
    """
    root, here = str(Path(__file__).resolve().parents[3]), ""
    with contextlib.suppress(OSError):
        here = os.path.realpath(os.getcwd())
    kept = [path for path in sys.path if os.path.isabs(path) and (path == root or os.path.realpath(path) != here)]
    return kept if root in kept else [root, *kept]


def author_error(name: str, error: InvalidSubmissionError | GraderError) -> TaskError:
    """Return an error with the grader's message for the author of task `name`, whose script cannot be graded."""
    failure = error if isinstance(error, GraderError) else error.__cause__
    if not isinstance(failure, GraderError):
        return TaskError(f"task {name}: a script of its own hands in what cannot be graded: {error}")
    return TaskError(": ".join([f"task {name}", str(failure), *failure.details.strip().splitlines()[-1:]]))


def tell(task: str, error: GraderError, blame: str) -> None:
    """Log a grader's failure with its traceback for the operator, one JSON object per line, as a worker does."""
    facts = {"task": task, "blame": blame, "error": str(error), "details": error.details}
    _log.warning(json.dumps({"time": round(time.time(), 3), "event": "grader_failed", **facts}, ensure_ascii=False))
