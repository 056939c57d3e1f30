"""Starts a worker process beside a trainer on one host, and restarts it when it dies.

A worker that dies before it is ready cannot run here, and is given up after a few times. One that dies later was killed
by something: it is restarted, and the queue sets aside a job that kills its workers.

The worker is a separate program (`environments.worker`), never a fork: the trainer may have started JAX. It gets the
trainer's process id and ends itself when that process is gone.
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

from environments.queue.base import QUEUE_VARIABLE

STARTED = b'"event": "started"'
"""Line in the log of a worker that is ready."""
MAX_FAILED_STARTS = 3
"""Maximum failed starts in a row."""
PAUSE_SECONDS = 1.0
"""Pause before a dead worker is restarted."""
_POLL_SECONDS = 0.2
_log = logging.getLogger("mlagent.supervision")


class WorkerHandle:
    """A supervised process. `stop` closes it and is idempotent.

    Args:
      command: the program and its arguments.
      environment: its whole environment.
      log_path: file to which its output is appended.
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
        """Process id of the current worker."""
        return self._process.pid

    def alive(self) -> bool:
        """Check whether a worker runs, or will again in a moment; see `failure`."""
        return self._failure is None and not self._stopping.is_set()

    def failure(self) -> str | None:
        """Return why the worker is no longer restarted, with the end of its log; None if it is."""
        return self._failure

    def stop(self, timeout_seconds: float = 40.0) -> None:
        """Let the worker drain, or kill it after the time-out."""
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
            # A separate session: Ctrl-C in the trainer's terminal is for the trainer to handle.
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
        """Kill the processes that a dead worker left running."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _log_of_this_one(self) -> tuple[bool, str]:
        """Return whether the ended process was ready, and the end of its output."""
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
      queue_url: URL of the queue.
      tasks: folder of prepared tasks.
      store_url: URL of the blob store.
      sandbox: auto, docker or bubblewrap.
      slots: number of concurrent steps.
      log_path: file for its log, one JSON object per line.
    """
    command = [sys.executable, "-m", "environments.worker"]
    command += [f"--tasks={tasks}", f"--store={store_url}", f"--sandbox={sandbox}", f"--slots={slots}"]
    command += [f"--parent_pid={os.getpid()}"]
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, QUEUE_VARIABLE: queue_url, "PYTHONPATH": os.pathsep.join(paths)}
    return WorkerHandle(command, environment, Path(log_path))
