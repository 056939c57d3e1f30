"""The trainer's end of the queue: jobs in, outcomes out, in order; it fails loudly when nobody works.

Of a trainer of several processes each hands out its own share of the jobs and waits for its own share of the outcomes;
at every look all tell each other what came back, so that they train on one batch, with the same entries masked, and
stop for the same reasons.
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
WORD_SECONDS = 30.0
"""Shortest time between two lines that say that jobs fail."""

log = logging.getLogger(__name__)


class Collector:
    """Hands out jobs and gathers their outcomes.

    Args:
      queue: where workers take jobs from.
      run: name of the run, for the queue's own checks.
      silence_seconds: fail when nothing came back for so long.
      worker_failure: why this host's own workers cannot start, or None; asked while nothing comes back. None where
        workers are started elsewhere.
      check: raises where the wait is to end; called between two looks.
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
        self._next_word = 0.0

    def take_executions(self) -> int:
        """Scripts really executed for the outcomes gathered since the last call (the execution cache's left out)."""
        count, self._executions = self._executions, 0
        return count

    def submit(self, jobs: Sequence[Job]) -> None:
        """Enqueue this process's share; jobs that are known already, from before a restart, keep their place or their
        result.

        Raises:
          PeerError: another process could not. Here, its own error.
        """
        processes.gather(lambda: self.queue.enqueue(_share(jobs)))

    def gather(self, jobs: Sequence[Job], progress: Callable[[Outcome], None] | None = None) -> list[Outcome]:
        """Outcomes of `jobs` in order, waiting for all; `progress` is called with each as it comes.

        Infrastructure errors are among them (already retried by the queue): callers mask them.

        Raises:
          QueueError: no worker is alive, or nothing came back for `silence_seconds`.
          PeerError: that, of the share of another process.
        """
        self.submit(jobs)
        found: dict[str, Outcome] = {}
        for arrived, _ in self.arrivals(jobs):
            found |= arrived
            for outcome in arrived.values() if progress is not None else ():
                progress(outcome)
        return [found[job.id] for job in jobs]

    def consume(self, step: int, jobs: Sequence[Job]) -> None:
        """Record that training step `step` used the outcomes of `jobs`.

        Raises:
          QueueError: one of them was used by another step.
          PeerError: that, of the share of another process.
        """
        processes.gather(lambda: self.queue.consume(self.run, step, [job.id for job in _share(jobs)]))

    def rollback(self, step: int) -> None:
        """Give back what steps after `step` used; no process goes on before that is done."""
        processes.agree(lambda: self.queue.rollback(self.run, step))

    def arrivals(
        self, jobs: Sequence[Job], poll_seconds: float | None = None
    ) -> Iterator[tuple[dict[str, Outcome], float]]:
        """Outcomes of submitted `jobs` by job id as they come, until all are there; none where none came for
        `poll_seconds` (default `POLL_SECONDS`), so that a caller may stop waiting. With them the time, by the first
        process's clock (`time.monotonic`).

        Several processes look together, each for its share, and are told of what came to any: what all of them see at
        a look is the same, the time too, and so is what they make of it.

        Raises:
          QueueError: no worker is alive, or nothing came back for `silence_seconds`.
          PeerError: that, of the share of another process.
        """
        own = self._own_arrivals(_share(jobs), poll_seconds or POLL_SECONDS)
        waiting = {job.id for job in jobs}

        def look() -> tuple[float, Mapping[str, Any]]:
            self._check()
            new = next(own, {})
            return time.monotonic(), {job: outcome.to_dict() for job, outcome in new.items()}

        while True:
            told = processes.gather(look)
            new = {job: Outcome.from_dict(data) for _, share in told for job, data in share.items()}
            self._count(new.values())
            waiting -= new.keys()
            yield new, told[0][0]
            if not waiting:
                return

    def _own_arrivals(self, jobs: Sequence[Job], poll_seconds: float) -> Iterator[dict[str, Outcome]]:
        """`arrivals` of this process's share."""
        waiting = {job.id for job in jobs}
        # Silence is counted from here: jobs of a run that was stopped may have waited for days.
        heard = time.monotonic()
        while waiting:
            new = self.queue.wait(waiting, timeout_seconds=poll_seconds, count=1)
            waiting -= new.keys()
            self._tell_failures(new)
            yield new
            if new:
                heard = time.monotonic()
                continue
            failure = self._worker_failure() if self._worker_failure else None
            if failure is not None:
                raise QueueError(f"the workers of this host do not start: {failure}")
            if time.monotonic() - heard >= self.silence_seconds:
                self.queue.check_alive(self.run, self.silence_seconds)

    def _tell_failures(self, new: Mapping[str, Outcome]) -> None:
        """Say that jobs fail, and why, as soon as that is seen: those given up, or those that are tried again."""
        if time.monotonic() < self._next_word:
            return
        given_up = [outcome.reason for outcome in new.values() if is_masked(outcome)]
        given_up = [reason for reason in given_up if not reason.startswith("cancelled")]
        told = f"{len(given_up)} jobs failed for good, the last: {given_up[-1]}" if given_up else ""
        if not new:
            told = self.queue.failures(self.run)
        if told:
            log.warning("%s", told)
            self._next_word = time.monotonic() + WORD_SECONDS

    def _count(self, outcomes: Iterable[Outcome]) -> None:
        self._executions += sum("started" in outcome.progress and not outcome.cached for outcome in outcomes)


def _share(jobs: Sequence[Job]) -> Sequence[Job]:
    """Those of this process: every `count`-th."""
    return jobs[processes.index() :: processes.count()]


def is_masked(outcome: Outcome) -> bool:
    """Whether the outcome is ours, not the policy's: left out of the loss and of every figure."""
    return outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR
