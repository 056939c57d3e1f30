"""The program that runs a task's grader for `isolated`: one request at a time over a socket.

    request   {"what": "reward" | "report" | "official" | "resampled:DRAWS:SEED", "bytes": n}, a line; then the n bytes
              of a submission
    answer    {"value": ...} | {"refused": why} | {"raised": type, "where": ..., "details": ..., "host": bool}, a line

It ends after `IDLE_SECONDS` without a request, when the other side closes the socket, and by SIGALRM when loading the
grader or one request exceeds its time limit. Output of graders goes to standard output, never into an answer.
"""

from __future__ import annotations

import json
import pkgutil
import resource
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, BinaryIO

IDLE_SECONDS = 60.0
_REFUSAL_LETTERS = 500
_DETAIL_LETTERS = 8000


def main(private: str, handle: str, seconds: str, memory_bytes: str, load: str) -> None:
    """Serve the grader of `private` on the socket with the inherited descriptor `handle`.

    `load` is the name, `module:function`, of the function that makes the grader of that folder.
    """
    limit = float(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes),) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=int(handle))
    connection.set_inheritable(False)
    connection.settimeout(IDLE_SECONDS)
    stream = connection.makefile("rwb")
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        grader, failure = pkgutil.resolve_name(load)(Path(private)), None
        grader.open()
    except BaseException as error:
        grader, failure = None, _failure(error, Path(private), host=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    while request := _read(stream):
        what, submission = request
        signal.setitimer(signal.ITIMER_REAL, limit)
        answer = failure or _answer(grader, what, submission, Path(private))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.flush()
        stream.write(json.dumps(answer).encode() + b"\n")
        stream.flush()


def _read(stream: BinaryIO) -> tuple[str, bytes] | None:
    try:
        line = stream.readline()
        if not line:
            return None
        request = json.loads(line)
        return request["what"], stream.read(request["bytes"])
    except (TimeoutError, ConnectionError):
        return None


def _answer(grader: Any, what: str, submission: bytes, private: Path) -> dict[str, Any]:
    from environments.tasks.task import InvalidSubmissionError

    try:
        if what.startswith("resampled:"):
            draws, seed = map(int, what.split(":")[1:])
            return {"value": grader.resampled(submission, draws, seed)}
        return {"value": grader.official(submission) if what == "official" else grader.grade(submission, what)}
    except InvalidSubmissionError as error:
        return {"refused": str(error)[:_REFUSAL_LETTERS]}
    except BaseException as error:
        return _failure(error, private, host=isinstance(error, ImportError))


def _failure(error: BaseException, private: Path, host: bool) -> dict[str, Any]:
    """Describe an exception and where it was raised, preferably in a file of the task."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).name in ("grade.py", "eval.py")] or frames[-1:]
    where = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else ""
    details = "".join(traceback.format_exception(error))[-_DETAIL_LETTERS:]
    return {"raised": type(error).__name__, "where": where, "details": details, "host": host}
