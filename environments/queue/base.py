"""The reward queue: jobs out, outcomes back, at-least-once execution and exactly one accepted result a job.

    trainer: enqueue -> (workers) -> outcomes -> consume          worker: claim -> heartbeat ... -> complete | fail

A job is `queued`, `leased` (to one worker, until its lease runs out), `done` (one outcome accepted) or `dead` (failed
`max_attempts` times; its outcome is an infrastructure error, which the trainer masks).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from environments.protocol import Job, Outcome


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


@dataclasses.dataclass(frozen=True)
class Lease:
    """One claim of one job. `token` fences: it grows with every claim of the job, and only the newest is accepted."""

    job: Job
    token: int
    attempt: int
    worker: str
    seconds: float
    """Length of the lease; renewed by `heartbeat`, which a worker calls every third of it."""


class RewardQueue(Protocol):
    """Thread-safe; safe among processes (SQLite: of one host). Time is the database's."""

    # -- trainer --
    def enqueue(self, jobs: Iterable[Job]) -> int:
        """Add jobs; those already known (by `Job.id`) are left as they are. Returns how many were new."""

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

    def check_alive(self, run: str, silence_seconds: float) -> None:
        """Raise QueueError, with the reason, when no worker is alive or nothing came back for so long."""

    # -- worker --
    def claim(self, worker: str, capabilities: Capabilities, lease_seconds: float = 60.0) -> Lease | None:
        """Lease the oldest job that this worker can serve, or None. Counts an attempt."""

    def heartbeat(self, lease: Lease) -> bool:
        """Renew; False when the lease was lost and the work is to be abandoned."""

    def complete(self, lease: Lease, outcome: Outcome) -> bool:
        """Hand in a result; False (counted, discarded) when the lease was lost or the job has its result."""

    def fail(self, lease: Lease, reason: str) -> None:
        """An infrastructure failure: the job is retried after a backoff, or dead after `max_attempts`."""

    # -- people --
    def status(self) -> Mapping[str, Any]:
        """Depth, ages, leases, attempts, dead letters with reasons, workers with last-seen, rates; as JSON."""

    def close(self) -> None: ...
