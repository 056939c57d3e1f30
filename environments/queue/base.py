"""The reward queue: jobs out, outcomes back, at-least-once execution and exactly one accepted result a job.

    trainer: enqueue -> (workers) -> outcomes -> consume     worker: claim -> heartbeat ... -> complete | fail | release

A job is `queued`, `leased` (to one worker, until its lease runs out), `done` (one outcome accepted), `dead` (failed
`max_attempts` times, or set aside because it is no job or kills its workers) or `cancelled`; the outcome of the last
two is an infrastructure error, which the trainer masks.
`environments.queue.open_queue` gives the implementation that a URL names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from environments.protocol import Job, Outcome, Requirements


class QueueError(Exception):
    """The queue cannot do what was asked; the message names why and the remedy."""


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a worker offers; a job is given only to a worker that meets its `requirements`."""

    cores: int = 1
    memory_mb: int = 2048
    gpus: int = 0
    image: str = ""
    """Digest of the worker's locked Python environment."""
    guarantees: frozenset[str] = frozenset()

    def lacking(self, requirements: Requirements) -> list[str]:
        """What `requirements` ask for and this does not offer, in words; empty where a job can be served."""
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
    """What a worker process says of itself every few seconds."""

    host: str
    pid: int
    version: str
    """Of this package."""
    slots: int
    capabilities: Capabilities
    health: str = "ok"
    """`ok`, `draining`, `stopped...`, or what is wrong, in one line."""
    completed: int = 0
    failed: int = 0


class Changes(Protocol):
    """A watch on the queue, from the moment it was opened."""

    def wait(self, timeout_seconds: float) -> bool:
        """Return True soon after something changed since the last call, False at the time-out. May wake for nothing."""


@dataclasses.dataclass(frozen=True)
class Lease:
    """One claim of one job. `token` fences: it grows with every claim of the job, and only the newest is accepted."""

    job: Job
    token: int
    attempt: int
    worker: str
    seconds: float
    """Length of the lease; renewed by `heartbeat`, which a worker calls every third of it."""
    lapses: int = 0
    """Earlier leases of the job that ran out. Above 0 the job may have killed its worker: it is executed alone."""


class RewardQueue(Protocol):
    """Thread-safe; safe among processes (SQLite: of one host). Time is the database's, and never goes back."""

    # -- trainer --
    def enqueue(self, jobs: Iterable[Job]) -> int:
        """Add jobs; those already known (by `Job.id`) are left as they are, but for those cancelled and not yet
        consumed: they are queued again.

        Returns how many were added.
        """

    def outcomes(self, job_ids: Collection[str]) -> dict[str, Outcome]:
        """Accepted outcomes of those of `job_ids` that are finished, by id; dead jobs give infrastructure errors."""

    def wait(self, job_ids: Collection[str], timeout_seconds: float, count: int | None = None) -> dict[str, Outcome]:
        """Like `outcomes`, but waits until `count` (default: all) of them are finished, or until the time-out."""

    def consume(self, run: str, step: int, job_ids: Collection[str]) -> None:
        """Record that training step `step` of `run` used these results. A result is consumed once.

        Raises:
          QueueError: one of them is not finished, or was used by another step.
        """

    def consumed(self, run: str) -> dict[str, int]:
        """Step that used each consumed result of `run`, by job id."""

    def rollback(self, run: str, step: int) -> int:
        """Give back results consumed by steps after `step` (the checkpoint's); returns how many."""

    def cancel(self, run: str, older_than_version: int | None = None) -> int:
        """Cancel queued jobs of `run` (sampled by a policy older than the version given); returns how many."""

    def failures(self, run: str) -> str:
        """How many jobs of `run` failed and are tried again, with the last reason; empty where none failed."""

    def check_alive(self, run: str, silence_seconds: float) -> None:
        """Raise QueueError, with the reason, when no worker is alive or nothing came back for so long."""

    # -- worker --
    def claim(self, worker: str, capabilities: Capabilities, lease_seconds: float = 60.0) -> Lease | None:
        """Lease the oldest job that this worker can serve, or None. Counts an attempt. What is queued and is no job is
        set aside with its reason."""

    def heartbeat(self, leases: Collection[Lease]) -> list[Lease]:
        """Renew all; returns those that were lost, whose work is to be abandoned."""

    def complete(self, lease: Lease, outcome: Outcome) -> bool:
        """Hand in a result; False (counted, discarded) when the lease was lost or the job has its result."""

    def fail(self, lease: Lease, reason: str) -> None:
        """An infrastructure failure: the job is retried after a backoff, or dead after `max_attempts`."""

    def release(self, lease: Lease) -> None:
        """Give a job back that was not finished for no fault of it or of the host: the attempt does not count."""

    def watch(self) -> AbstractContextManager[Changes]:
        """Wakes when jobs may have been added."""

    def report(self, worker: str, report: WorkerReport) -> None:
        """Say that the worker process `worker` is alive, and how it is."""

    # -- people --
    def retry(self, run: str | None = None, job_ids: Collection[str] = ()) -> int:
        """Queue dead jobs again (of `run`, or of all), or the finished jobs named by id, with fresh attempts; never one
        whose result was consumed. Returns how many."""

    def purge(self, older_than_seconds: float, run: str | None = None) -> int:
        """Delete what finished longer ago than that, and workers not seen since; returns how many jobs."""

    def texts(self, steps: Mapping[str, int]) -> Iterator[str]:
        """Texts of jobs and outcomes, as they are stored: what they name in the store is in use. Those whose results a
        training step before `steps`, by run, used are left out."""

    def status(self) -> Mapping[str, Any]:
        """Depth, ages, leases, attempts, dead letters with reasons, workers with last-seen, rates; as JSON."""

    def close(self) -> None: ...
