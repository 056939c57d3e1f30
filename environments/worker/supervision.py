"""Starts a worker process beside a trainer on one host, and starts it again when it dies.

A worker that dies before it works cannot start here, and is given up after a few times. One that dies at work was
killed by something: it is started again, and the queue sets the job aside that kills its workers.

The worker is a program of its own (`environments.worker`), never a fork: the trainer may have started JAX. It is told
the trainer's process id and ends itself when that process is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

QUEUE_VARIABLE = "MLAGENT_QUEUE"
"""Environment variable with the queue's URL: an argument would show its password to every user of the host."""
STARTED = b'"event": "started"'
"""Stands in the log of a worker that has got to work."""
MAX_FAILED_STARTS = 3
"""So many in a row, and it is not started again."""
PAUSE_SECONDS = 1.0
"""Before a worker that died is started again."""
_POLL_SECONDS = 0.2
_log = logging.getLogger("mlagent.supervision")


class WorkerHandle:
    """A supervised process. Closed by `stop`, which is idempotent.

    Args:
      command: the program and its arguments.
      environment: its whole environment.
      log_path: file that its output is appended to.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self._command, self._environment, self.log_path = list(command), dict(environment), log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._process = self._start()
        self._watcher = threading.Thread(target=self._watch, name="worker-supervisor", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Of the worker that runs now."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether a worker runs, or will again in a moment; see `failure`."""
        return self._failure is None and not self._stopping.is_set()

    def failure(self) -> str | None:
        """Why the worker is no longer started, with the end of its log; None while all is well."""
        return self._failure

    def stop(self, timeout_seconds: float = 40.0) -> None:
        """Let it drain, or kill it when that takes longer than the time-out."""
        self._stopping.set()
        self._watcher.join()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_seconds)
        self._kill_group()
        self._process.wait()

    def _start(self) -> subprocess.Popen:
        with open(self.log_path, "ab") as output:
            self._log_start = output.tell()
            # A session of its own: Ctrl-C in the trainer's terminal is the trainer's to handle.
            return subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _watch(self) -> None:
        failed_starts = 0
        while not self._stopping.wait(_POLL_SECONDS):
            status = self._process.poll()
            if status is None:
                continue
            self._kill_group()
            got_to_work, last_line = self._log_of_this_one()
            why = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            failed_starts = 0 if got_to_work else failed_starts + 1
            if failed_starts >= MAX_FAILED_STARTS:
                self._failure = f"the worker {why} {failed_starts} times in a row: {last_line}"
                return
            _log.warning("the worker %s and is started again; its last words: %s", why, last_line)
            if self._stopping.wait(PAUSE_SECONDS):
                return
            self._process = self._start()

    def _kill_group(self) -> None:
        """What a dead worker left running dies with it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _log_of_this_one(self) -> tuple[bool, str]:
        """Whether the process that ended got to work, and the end of what it said."""
        with open(self.log_path, "rb") as file:
            file.seek(self._log_start)
            said = file.read()
        lines = said.decode(errors="replace").strip().splitlines()
        return STARTED in said, f"{lines[-1] if lines else 'no output'} (see {self.log_path})"


def start_workers(
    queue_url: str, tasks: str | Path, store_url: str, sandbox: str, slots: int, log_path: str | Path
) -> WorkerHandle:
    """Start a worker with `slots` slots on this host, which ends with this process.

    Args:
      tasks: folder of prepared tasks.
      sandbox: auto, docker or bubblewrap.
      log_path: file for its log, one JSON object a line.
    """
    command = [sys.executable, "-m", "environments.worker"]
    command += [f"--tasks={tasks}", f"--store={store_url}", f"--sandbox={sandbox}", f"--slots={slots}"]
    command += [f"--parent_pid={os.getpid()}"]
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, QUEUE_VARIABLE: queue_url, "PYTHONPATH": os.pathsep.join(paths)}
    return WorkerHandle(command, environment, Path(log_path))
