"""The reward queue: jobs out, outcomes back, with at-least-once execution and exactly one accepted result per job.

    trainer: enqueue -> (workers) -> outcomes -> consume     worker: claim -> heartbeat ... -> complete | fail | release

A job is `queued`, `leased` (to one worker, until its lease runs out), `done` (one outcome accepted), `dead` (failed
`max_attempts` times, or set aside because it is malformed or kills its workers) or `cancelled`. The outcome of a dead
or cancelled job is an infrastructure error, which the trainer masks. `environments.queue.open_queue` returns the
implementation for a URL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from environments.protocol import Job, Outcome, Requirements

QUEUE_VARIABLE = "MLAGENT_QUEUE"
"""Environment variable with the queue's URL: an argument would show its password to every user of the host."""


class QueueError(Exception):
    """The queue cannot do an operation. The message says why and gives the remedy."""


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Capabilities of a worker. A job goes only to a worker that meets its `requirements`."""

    cores: int = 1
    memory_mb: int = 2048
    gpus: int = 0
    image: str = ""
    """Digest of the worker's locked Python environment."""
    guarantees: frozenset[str] = frozenset()

    def lacking(self, requirements: Requirements) -> list[str]:
        """Describe the `requirements` that this worker does not meet; empty if it can serve the job."""
        lacking = [
            f"{name} {asked} (offers {offered})"
            for name, asked, offered in (
                ("cores", requirements.cores, self.cores),
                ("memory_mb", requirements.memory_mb, self.memory_mb),
                ("gpus", requirements.gpus, self.gpus),
            )
            if asked > offered
        ]
        if requirements.image is not None and requirements.image != self.image:
            lacking.append(f"image {requirements.image} (offers {self.image or 'none'})")
        missing = sorted(set(requirements.guarantees) - self.guarantees)
        return lacking + [f"guarantee {name}" for name in missing]

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "guarantees": sorted(self.guarantees)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Capabilities:
        return cls(**{**data, "guarantees": frozenset(data["guarantees"])})


@dataclasses.dataclass(frozen=True)
class WorkerReport:
    """Report of a worker process about itself, sent every few seconds."""

    host: str
    pid: int
    version: str
    """Version of this package."""
    slots: int
    capabilities: Capabilities
    health: str = "ok"
    """State in one line: `ok`, `draining`, `stopped...`, or the current problem."""
    completed: int = 0
    failed: int = 0


class Changes(Protocol):
    """A watch on the queue, from the moment it was opened."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for a change since the last call; True after one, False at the time-out. Spurious wake-ups occur."""


@dataclasses.dataclass(frozen=True)
class Lease:
    """One claim of a job. `token` is a fence: it grows with every claim of the job; only the newest is accepted."""

    job: Job
    token: int
    attempt: int
    worker: str
    seconds: float
    """Length of the lease. `heartbeat` renews it; a worker calls that after every third of it."""
    lapses: int = 0
    """Earlier leases of the job that ran out. Above 0 the job may have killed its worker, so it is executed alone."""


class RewardQueue(Protocol):
    """A queue, safe among threads and processes (SQLite: of one host). Time is the database's and never goes back."""

    # -- trainer --
    def enqueue(self, jobs: Iterable[Job]) -> int:
        """Add jobs and return the number of those added.

        Jobs already known (by `Job.id`) stay unchanged, except cancelled ones not yet consumed: they are queued again.
        """

    def outcomes(self, job_ids: Collection[str]) -> dict[str, Outcome]:
        """Return the accepted outcomes of finished jobs in `job_ids`, by id; dead jobs give infrastructure errors."""

    def wait(self, job_ids: Collection[str], timeout_seconds: float, count: int | None = None) -> dict[str, Outcome]:
        """Wait until `count` (default: all) of the jobs are finished, or until the time-out; return their outcomes."""

    def consume(self, run: str, step: int, job_ids: Collection[str]) -> None:
        """Record that training step `step` of `run` used these results. A result is consumed once.

        Raises:
          QueueError: one of them is not finished, or was used by another step.
        """

    def consumed(self, run: str) -> dict[str, int]:
        """Return the step that used each consumed result of `run`, by job id."""

    def rollback(self, run: str, step: int) -> int:
        """Return results consumed by steps after `step` (the checkpoint's) to the queue; return their number."""

    def cancel(self, run: str, older_than_version: int | None = None) -> int:
        """Cancel queued jobs of `run` (only of policies older than a given version); return their number."""

    def failures(self, run: str) -> str:
        """Return number and last reason of the jobs of `run` that failed and are retried; empty if there are none."""

    def check_alive(self, run: str, silence_seconds: float) -> None:
        """Check that a worker is alive and that results arrived within `silence_seconds`.

        Raises:
          QueueError: neither is the case; the message gives the reason.
        """

    # -- worker --
    def claim(self, worker: str, capabilities: Capabilities, lease_seconds: float = 60.0) -> Lease | None:
        """Lease the oldest job that this worker can serve, or return None. Counts an attempt.

        A queued payload that is not a valid job is set aside with the reason.
        """

    def heartbeat(self, leases: Collection[Lease]) -> list[Lease]:
        """Renew all leases; return the lost ones, whose work must be abandoned."""

    def complete(self, lease: Lease, outcome: Outcome) -> bool:
        """Submit a result; return False (counted, discarded) if the lease was lost or the job has its result."""

    def fail(self, lease: Lease, reason: str) -> None:
        """Report an infrastructure failure: the job is retried after a backoff, or dead after `max_attempts`."""

    def release(self, lease: Lease) -> None:
        """Return an unfinished job when neither it nor the host failed: the attempt does not count."""

    def watch(self) -> AbstractContextManager[Changes]:
        """Open a watch that wakes when jobs may have been added."""

    def report(self, worker: str, report: WorkerReport) -> None:
        """Report that the worker process `worker` is alive, and its state."""

    # -- people --
    def retry(self, run: str | None = None, job_ids: Collection[str] = ()) -> int:
        """Queue dead jobs (of `run`, or of all) or finished jobs named by id again, with fresh attempts; return their
        number.

        Jobs whose result was consumed are excluded.
        """

    def purge(self, older_than_seconds: float, run: str | None = None) -> int:
        """Delete jobs that finished longer ago than that, and workers not seen since; return the number of jobs."""

    def texts(self, steps: Mapping[str, int]) -> Iterator[str]:
        """Yield the stored texts of jobs and outcomes, which name the blobs in use.

        Args:
          steps: training step by run; jobs whose results an earlier step used are left out.
        """

    def status(self) -> Mapping[str, Any]:
        """Return depth, ages, leases, attempts, dead letters with reasons, workers with last-seen, rates; as JSON."""

    def close(self) -> None: ...
