"""Trainer's client of the queue: submits jobs, returns outcomes in order, and fails if no worker is alive.

With several processes each submits its own share of the jobs and waits for its own share of the outcomes. After every
poll they exchange the arrived outcomes, so that they train on the same batch with the same entries masked, and stop for
the same reasons.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from environments.protocol import Job, Outcome, OutcomeKind
from environments.queue.base import QueueError, RewardQueue
from mlagent_jax.runtime import processes

POLL_SECONDS = 5.0
WARNING_INTERVAL_SECONDS = 30.0
"""Minimum time between two warnings about failing jobs, in seconds."""

log = logging.getLogger(__name__)


class JobClient:
    """Submits jobs and gathers their outcomes.

    Args:
      queue: Queue that workers claim jobs from.
      run: Name of the run, for the queue's own checks.
      silence_seconds: Maximum time without any outcome.
      worker_failure: Returns why this host's own workers cannot start, or None; called while nothing arrives. None if
        workers are started elsewhere.
      check: Raises to end the wait; called between two polls.
    """

    def __init__(
        self,
        queue: RewardQueue,
        run: str,
        silence_seconds: float,
        worker_failure: Callable[[], str | None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.queue, self.run, self.silence_seconds = queue, run, silence_seconds
        self._check = check
        self._worker_failure = worker_failure
        self._executions = 0
        self._next_warning = 0.0

    def take_executions(self) -> int:
        """Return the number of scripts executed for the outcomes gathered since the last call, without cached ones."""
        count, self._executions = self._executions, 0
        return count

    def submit(self, jobs: Sequence[Job]) -> None:
        """Enqueue this process's share; jobs known from before a restart keep their place or their result.

        Raises:
          PeerError: Another process failed. In the process that failed, its own error is raised.
        """
        processes.gather(lambda: self.queue.enqueue(_share(jobs)))

    def gather(self, jobs: Sequence[Job], progress: Callable[[Outcome], None] | None = None) -> list[Outcome]:
        """Return the outcomes of `jobs` in order, when all have arrived; `progress` is called with each as it arrives.

        Infrastructure errors are included (the queue has already retried them): callers mask them.

        Raises:
          QueueError: No worker is alive, or nothing arrived for `silence_seconds`.
          PeerError: The same, for the share of another process.
        """
        self.submit(jobs)
        outcomes: dict[str, Outcome] = {}
        for arrived, _ in self.arrivals(jobs):
            outcomes |= arrived
            for outcome in arrived.values() if progress is not None else ():
                progress(outcome)
        return [outcomes[job.id] for job in jobs]

    def consume(self, step: int, jobs: Sequence[Job]) -> None:
        """Record that training step `step` used the outcomes of `jobs`.

        Raises:
          QueueError: Another step has used one of them.
          PeerError: The same, for the share of another process.
        """
        processes.gather(lambda: self.queue.consume(self.run, step, [job.id for job in _share(jobs)]))

    def rollback(self, step: int) -> None:
        """Undo `consume` of all steps after `step`; all processes wait until it is done."""
        processes.agree(lambda: self.queue.rollback(self.run, step))

    def arrivals(
        self, jobs: Sequence[Job], poll_seconds: float | None = None
    ) -> Iterator[tuple[dict[str, Outcome], float]]:
        """Yield arrived outcomes of submitted `jobs` by job id, until all are there, each time with the first process's
        clock (`time.monotonic`). Yields no outcomes if none arrived for `poll_seconds` (default `POLL_SECONDS`), so
        that a caller may stop waiting.

        Several processes poll together, each for its share, and exchange the arrivals: all see the same outcomes and
        time at each poll, and so decide the same.

        Raises:
          QueueError: No worker is alive, or nothing arrived for `silence_seconds`.
          PeerError: The same, for the share of another process.
        """
        own = self._own_arrivals(_share(jobs), poll_seconds or POLL_SECONDS)
        waiting = {job.id for job in jobs}

        def poll() -> tuple[float, Mapping[str, Any]]:
            self._check()
            new = next(own, {})
            return time.monotonic(), {job: outcome.to_dict() for job, outcome in new.items()}

        while True:
            shares = processes.gather(poll)
            new = {job: Outcome.from_dict(data) for _, share in shares for job, data in share.items()}
            self._count(new.values())
            waiting -= new.keys()
            yield new, shares[0][0]
            if not waiting:
                return

    def _own_arrivals(self, jobs: Sequence[Job], poll_seconds: float) -> Iterator[dict[str, Outcome]]:
        """Yield `arrivals` of this process's share."""
        waiting = {job.id for job in jobs}
        # Silence starts now: jobs of a stopped run may have waited for days.
        last_arrival = time.monotonic()
        while waiting:
            new = self.queue.wait(waiting, timeout_seconds=poll_seconds, count=1)
            waiting -= new.keys()
            self._warn_of_failures(new)
            yield new
            if new:
                last_arrival = time.monotonic()
                continue
            failure = self._worker_failure() if self._worker_failure else None
            if failure is not None:
                raise QueueError(f"the workers of this host do not start: {failure}")
            if time.monotonic() - last_arrival >= self.silence_seconds:
                self.queue.check_alive(self.run, self.silence_seconds)

    def _warn_of_failures(self, new: Mapping[str, Outcome]) -> None:
        """Warn that jobs fail, and why: those given up, or those being retried."""
        if time.monotonic() < self._next_warning:
            return
        given_up = [outcome.reason for outcome in new.values() if is_masked(outcome)]
        given_up = [reason for reason in given_up if not reason.startswith("cancelled")]
        message = f"{len(given_up)} jobs failed for good, the last: {given_up[-1]}" if given_up else ""
        if not new:
            message = self.queue.failures(self.run)
        if message:
            log.warning("%s", message)
            self._next_warning = time.monotonic() + WARNING_INTERVAL_SECONDS

    def _count(self, outcomes: Iterable[Outcome]) -> None:
        self._executions += sum("started" in outcome.progress and not outcome.cached for outcome in outcomes)


def _share(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return this process's share of the jobs: every `count`-th."""
    return jobs[processes.index() :: processes.count()]


def is_masked(outcome: Outcome) -> bool:
    """Return whether the outcome is an infrastructure error, which is left out of the loss and of every figure."""
    return outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR
