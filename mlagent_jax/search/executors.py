"""Executors of a search's steps: slots of this process, or the workers of a fleet through their queue."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Protocol

from environments.cancellation import cancellable
from environments.protocol import Job, Outcome
from environments.queue.base import RewardQueue

SILENCE_SECONDS = 300.0
"""Maximum time without any outcome before the fleet is asked whether a worker is alive."""


class Executor(Protocol):
    """Executes jobs, which are identified by the numbers of their nodes."""

    def submit(self, number: int, job: Job) -> None:
        """Begin to execute a job."""

    def wait(self, seconds: float) -> dict[int, Outcome]:
        """Return the outcomes that arrived, by node number; wait up to `seconds` for the first one.

        Raises:
          SandboxError: A script could not be executed for reasons of this host.
          QueueError: No worker of the fleet is alive.
        """

    def close(self) -> None:
        """Abandon the jobs in work."""


class LocalSlots:
    """Executes jobs in threads of this process.

    Args:
      take: Executes one job; thread-safe.
      slots: Maximum concurrent executions.
    """

    def __init__(self, take: Callable[[Job], Outcome], slots: int) -> None:
        self._take = take
        self._threads = concurrent.futures.ThreadPoolExecutor(slots, "search-slot")
        self._cancelled = threading.Event()
        self._running: dict[concurrent.futures.Future[Outcome], int] = {}

    def submit(self, number: int, job: Job) -> None:
        self._running[self._threads.submit(self._execute, job)] = number

    def _execute(self, job: Job) -> Outcome:
        with cancellable(self._cancelled):
            return self._take(job)

    def wait(self, seconds: float) -> dict[int, Outcome]:
        done, _ = concurrent.futures.wait(
            self._running, timeout=seconds, return_when=concurrent.futures.FIRST_COMPLETED
        )
        ordered = sorted(done, key=self._running.__getitem__)
        return {self._running.pop(future): future.result() for future in ordered}

    def close(self) -> None:
        self._cancelled.set()
        self._threads.shutdown(wait=True, cancel_futures=True)


class Fleet:
    """Executes jobs through a queue, which keeps the outcomes for a search that is started again.

    Args:
      queue: Queue that workers claim from. The caller closes it.
      run: Name of the search, unique in the queue.
      image: Digest of the Python environment that workers must have.
      silence_seconds: See `SILENCE_SECONDS`.
    """

    def __init__(self, queue: RewardQueue, run: str, image: str, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._queue, self._run, self._image, self._silence = queue, run, image, silence_seconds
        self._running: dict[str, int] = {}
        self._last_arrival = time.monotonic()

    def submit(self, number: int, job: Job) -> None:
        needs = dataclasses.replace(job.requirements, memory_mb=job.limits.memory_mb, image=self._image)
        job = dataclasses.replace(job, run=self._run, sample=number, requirements=needs)
        if not self._running:
            self._last_arrival = time.monotonic()
        self._queue.enqueue([job])
        self._running[job.id] = number

    def wait(self, seconds: float) -> dict[int, Outcome]:
        arrived = self._queue.wait(set(self._running), timeout_seconds=seconds, count=1) if self._running else {}
        if arrived:
            self._last_arrival = time.monotonic()
        elif self._running and time.monotonic() - self._last_arrival >= self._silence:
            self._queue.check_alive(self._run, self._silence)
        return {self._running.pop(identity): outcome for identity, outcome in arrived.items()}

    def close(self) -> None:
        """Do nothing, since other processes may share the run.

        Workers finish the jobs in work, and the next start finds their outcomes.
        """
