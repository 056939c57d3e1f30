"""Graders that run code which is not ours, each in a warm process of its own with limits of time and memory.

    the submission is fine                     its score
    the grader refuses it                      InvalidSubmissionError: the policy's
    the grader raises, hangs or dies           asked again with a submission that it has scored before (the control):
        the control is scored, and the         InvalidSubmissionError: the submission breaks the grader
        submission fails once more
        the control fails too                  GraderError: ours

A process whose grader failed is not used again. Processes end by themselves when idle, so that a host that grades many
tasks does not hold them all.
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

import environments
from environments.tasks.task import GraderError, GraderLimitError, InvalidSubmissionError, TaskError

CONTROL = "control.csv"
"""Beside private/: a submission that the grader has scored, that of the starting script."""
SECONDS = 90.0
"""Time for loading a grader, and for one request. Two of them and a control fit into the time that a lease allows
beside the execution."""
MEMORY_BYTES = 8 << 30
"""Address space of a grader."""
_GRACE_SECONDS = 10.0
_SAID_LETTERS = 2000
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from environments.tasks.grading.process import main; main(*sys.argv[2:])"
)
_log = logging.getLogger("mlagent.grading")


class IsolatedGrader:
    """The grader of a prepared task (`graders.Grader`). Thread-safe: each request has a process to itself."""

    def __init__(
        self,
        private: Path,
        load: Callable[[Path], Any],
        seconds: float = SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """Start nothing yet.

        Args:
          load: reads the answers of `private` for `rows`, `kinds` and `labels`; it executes nothing of the task.
          seconds: for loading the grader, and for each request.
        """
        self._private, self._load = private.resolve(), load
        self._limits = (seconds, memory_bytes)
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._control: bytes | None = None
        weakref.finalize(self, _kill_all, self._idle)

    @functools.cached_property
    def in_process(self) -> Any:
        """The grader in this process, of which nothing is called but what reads the answers."""
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
        """Metric of `submission` on `half`, `reward` or `report`.

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
        """What the benchmark that the task is from reports of a submission.

        Raises:
          InvalidSubmissionError: the grader refuses it.
          GraderError: the grader fails.
        """
        return self._ask("official", submission)

    def close(self) -> None:
        """End all processes; requests under way fail with a GraderError."""
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
        """Whether the grader still scores what it scored before. Where nothing is known that it scores, an exception is
        taken for the submission's fault, a limit for this host's."""
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
                process = process or _Process(self._private, *self._limits)
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
            if not (warm and process.status == 0):  # An idle process may end just when it is asked.
                raise process.death()
        if "refused" in answer:
            raise InvalidSubmissionError(answer["refused"])
        if "raised" in answer:
            kind, details = answer["raised"], f"{process.said()}{answer['details']}"
            message = f"the grader raised {kind} in {answer['where']}"
            raise GraderError(message, details, kind=kind, host=answer["host"], limit=kind == "MemoryError")
        return answer["value"]


class _Process:
    """One grader process. It is asked one thing at a time, by one thread."""

    def __init__(self, private: Path, seconds: float, memory_bytes: int) -> None:
        self._seconds = seconds
        self._socket, theirs = socket.socketpair()
        # The process ends itself when a limit is reached; this is for what it leaves running.
        self._socket.settimeout(2 * seconds + _GRACE_SECONDS)
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process

        command = [sys.executable, "-I", "-u", "-c", _START, json.dumps(_import_path())]
        arguments = [str(private), str(theirs.fileno()), str(seconds), str(memory_bytes)]
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
        """The answer, or None where the process ended instead."""
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
        """The end of what the grader printed."""
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _SAID_LETTERS))
        return self._said.read().decode(errors="replace")

    def death(self) -> GraderError:
        """Why there is no answer."""
        if self.status in (-signal.SIGALRM, -signal.SIGKILL):
            late = self.status == -signal.SIGALRM
            message = f"the grader took longer than {self._seconds:g} seconds" if late else "the grader was killed"
            return GraderError(message, self.said(), kind="time limit" if late else "killed", limit=True)
        message = f"the grader ended with status {self.status} and no result"
        return GraderError(message, self.said(), kind=f"status {self.status}", limit=True)

    def kill(self) -> None:
        """End it with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()


def _kill_all(processes: list[_Process]) -> None:
    for process in processes:
        process.kill()


def _import_path() -> list[str]:
    """Where a grader finds modules: where this process does, less the folder that it was started in, since a task's
    folder may hold files that are called like libraries."""
    root, here = str(Path(environments.__file__).resolve().parents[1]), ""
    with contextlib.suppress(OSError):
        here = os.path.realpath(os.getcwd())
    kept = [path for path in sys.path if os.path.isabs(path) and (path == root or os.path.realpath(path) != here)]
    return kept if root in kept else [root, *kept]


def author_error(name: str, error: InvalidSubmissionError | GraderError) -> TaskError:
    """What is wrong with how the task `name` grades a script of its own, for its author: with what the grader said."""
    failure = error if isinstance(error, GraderError) else error.__cause__
    if not isinstance(failure, GraderError):
        return TaskError(f"task {name}: a script of its own hands in what cannot be graded: {error}")
    return TaskError(": ".join([f"task {name}", str(failure), *failure.details.strip().splitlines()[-1:]]))


def tell(task: str, error: GraderError, blame: str) -> None:
    """Show the operator a grader's failure with its traceback: a JSON object a line, as all of a worker's log."""
    facts = {"task": task, "blame": blame, "error": str(error), "details": error.details}
    _log.warning(json.dumps({"time": round(time.time(), 3), "event": "grader_failed", **facts}, ensure_ascii=False))
