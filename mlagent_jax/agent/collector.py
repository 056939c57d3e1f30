"""The trainer's end of the queue: jobs in, outcomes out, in order; it fails loudly when nobody works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from environments.protocol import Job, Outcome, OutcomeKind
from environments.queue.base import QueueError, RewardQueue

POLL_SECONDS = 5.0


class Collector:
    """Hands out jobs and gathers their outcomes.

    Args:
      queue: where workers take jobs from.
      run: name of the run, for the queue's own checks.
      silence_seconds: fail when nothing came back for so long.
      worker_failure: why this host's own workers cannot start, or None; asked while nothing comes back. None where
        workers are started elsewhere.
    """

    def __init__(
        self,
        queue: RewardQueue,
        run: str,
        silence_seconds: float,
        worker_failure: Callable[[], str | None] | None = None,
    ) -> None:
        self.queue, self.run, self.silence_seconds = queue, run, silence_seconds
        self._worker_failure = worker_failure
        self._executions = 0

    def take_executions(self) -> int:
        """Scripts really executed for the outcomes gathered since the last call (the execution cache's left out)."""
        count, self._executions = self._executions, 0
        return count

    def submit(self, jobs: Sequence[Job]) -> None:
        """Enqueue; jobs that are known already, from before a restart, keep their place or their result."""
        self.queue.enqueue(jobs)

    def gather(self, jobs: Sequence[Job], progress: Callable[[Outcome], None] | None = None) -> list[Outcome]:
        """Outcomes of `jobs` in order, waiting for all; `progress` is called with each as it comes.

        Infrastructure errors are among them (already retried by the queue): callers mask them.

        Raises:
          QueueError: no worker is alive, or nothing came back for `silence_seconds`.
        """
        found: dict[str, Outcome] = {}
        self.submit(jobs)
        for arrived in self.arrivals(jobs):
            found |= arrived
            for outcome in arrived.values():
                if progress is not None:
                    progress(outcome)
        return [found[job.id] for job in jobs]

    def arrivals(self, jobs: Sequence[Job], poll_seconds: float | None = None) -> Iterator[dict[str, Outcome]]:
        """Outcomes of submitted `jobs` by job id as they come, until all are there; empty where none came for
        `poll_seconds` (default `POLL_SECONDS`), so that a caller may stop waiting.

        Raises:
          QueueError: no worker is alive, or nothing came back for `silence_seconds`.
        """
        waiting = {job.id for job in jobs}
        # Silence is counted from here: jobs of a run that was stopped may have waited for days.
        heard = time.monotonic()
        while True:
            new = self.queue.wait(waiting, timeout_seconds=poll_seconds or POLL_SECONDS, count=1) if waiting else {}
            self._executions += sum("started" in outcome.progress and not outcome.cached for outcome in new.values())
            waiting -= new.keys()
            yield new
            if not waiting:
                return
            if new:
                heard = time.monotonic()
                continue
            failure = self._worker_failure() if self._worker_failure else None
            if failure is not None:
                raise QueueError(f"the workers of this host do not start: {failure}")
            if time.monotonic() - heard >= self.silence_seconds:
                self.queue.check_alive(self.run, self.silence_seconds)


def is_masked(outcome: Outcome) -> bool:
    """Whether the outcome is ours, not the policy's: left out of the loss and of every figure."""
    return outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR
