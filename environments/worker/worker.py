"""The CPU host's loop: lease a job, take its step, submit the outcome.

One process has one sandbox, `slots` threads, and one thread that renews the leases and reports. Every failure of ours
goes back to the queue as a failure, never as an outcome. SIGTERM drains: the worker claims no new jobs and finishes
running ones; jobs unfinished after a while are returned as if never claimed. A killed worker needs no clean-up: its
leases run out. A job whose lease ran out may have killed its worker, so it is executed alone and cannot disturb others
again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from environments.cancellation import cancellable
from environments.protocol import Job, Outcome, OutcomeKind
from environments.queue import QueueError, RewardQueue
from environments.queue.base import Capabilities, Changes, Lease
from environments.worker.host import Parent, report_of, worker_name

IDLE_SECONDS = 1.0
"""Maximum time between two polls for work, which also find jobs whose backoff ended."""
REPORT_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 30.0
ABORT_SECONDS = 10.0
"""Maximum time for an aborted step to return."""
ALONE_SECONDS = 120.0
"""Maximum time that a job to be executed alone waits for the others; part of a job's overhead."""

_log = logging.getLogger("mlagent.worker")


class Worker:
    """Slots on one queue. `run` blocks until `stop` or `abort` is called, from a signal handler or another thread.

    Args:
      take: function that takes a job's step. An exception, or an infrastructure error as outcome, is our failure.
      slots: number of concurrent steps.
      interrupt: function that makes running steps fail soon; called when draining takes too long.
      lease_seconds: time after which a lost worker's job goes to another.
      drain_seconds: time for running steps to finish after draining starts.
      parent_pid: process whose end aborts the worker.
    """

    def __init__(
        self,
        queue: RewardQueue,
        take: Callable[[Job], Outcome],
        slots: int,
        capabilities: Capabilities,
        *,
        name: str | None = None,
        interrupt: Callable[[], None] = lambda: None,
        lease_seconds: float = 60.0,
        drain_seconds: float = 25.0,
        parent_pid: int | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; a worker needs at least 1")
        self.name = name or worker_name()
        self._queue, self._take, self._interrupt = queue, take, interrupt
        self._slots, self._capabilities = slots, capabilities
        self._lease_seconds, self._drain_seconds = lease_seconds, drain_seconds
        self._parent = None if parent_pid is None else Parent(parent_pid)
        self._free = threading.Semaphore(slots)
        self._leases: dict[tuple[str, int], Lease] = {}
        """Leases of the steps in flight, by job and token."""
        self._lost: dict[tuple[str, int], threading.Event] = {}
        """Events that cancel the steps in flight, set where a lease was lost; by job and token."""
        self._lock = threading.Lock()
        self._draining, self._aborting, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._completed = self._failed = self._failures_in_a_row = 0
        self._pause_until = 0.0
        self._interrupted = False
        self._failure = ""
        """Reason of the last failed step, until a step succeeds."""
        self._troubles: dict[str, str] = {}
        """Errors of the queue, by call, until the call succeeds."""

    @property
    def completed(self) -> int:
        """Number of accepted results."""
        return self._completed

    def stop(self) -> None:
        """Claim no more jobs and finish running ones; the second call aborts."""
        if self._draining.is_set():
            self._aborting.set()
        self._draining.set()

    def abort(self) -> None:
        """Claim no more jobs; interrupt running ones and return them."""
        self._aborting.set()
        self._draining.set()

    def run(self) -> None:
        """Work until stopped."""
        log("started", worker=self.name, slots=self._slots, **self._capabilities.to_dict())
        pulse = threading.Thread(target=self._pulse, name="pulse", daemon=True)
        pulse.start()
        try:
            with self._queue.watch() as added:
                while not self._draining.is_set():
                    self._fill_a_slot(added)
            self._finish()
        finally:
            self._stopped.set()
            pulse.join()
            self._report("stopped")
            log("stopped", worker=self.name, completed=self._completed, failed=self._failed)

    def _fill_a_slot(self, added: Changes) -> None:
        pause = self._pause_until - time.monotonic()
        if pause > 0:
            self._draining.wait(min(pause, IDLE_SECONDS))
            return
        if not self._free.acquire(timeout=IDLE_SECONDS):
            return
        lease = None
        if not self._draining.is_set():  # Draining may have started while this waited for a slot.
            with self._asking("claim"):
                # One at a time, however many slots are free, so that a few jobs spread over many hosts.
                lease = self._queue.claim(self.name, self._capabilities, self._lease_seconds)
        if lease is None:
            self._free.release()
            added.wait(0.0 if self._draining.is_set() else IDLE_SECONDS)
        elif lease.lapses:
            self._execute_alone(lease)
        else:
            self._hold(lease)
            self._start(lease)

    def _hold(self, lease: Lease) -> None:
        with self._lock:
            self._leases[lease.job.id, lease.token] = lease
            self._lost[lease.job.id, lease.token] = threading.Event()

    def _let_go(self, lease: Lease) -> None:
        with self._lock:
            self._leases.pop((lease.job.id, lease.token), None)
            self._lost.pop((lease.job.id, lease.token), None)
        self._free.release()

    def _start(self, lease: Lease) -> threading.Thread:
        # A daemon thread: a step that cannot be interrupted does not keep the process alive.
        thread = threading.Thread(target=self._work, args=(lease,), name=f"job-{lease.job.id[:8]}", daemon=True)
        thread.start()
        return thread

    def _execute_alone(self, lease: Lease) -> None:
        """Take the step of a job that may kill this process, while no other step is in flight."""
        log("alone", worker=self.name, job=lease.job.id, lapses=lease.lapses)
        self._hold(lease)
        self._await_idle(ALONE_SECONDS, unless=self._draining, besides=1)
        if len(self._leases) > 1 or self._draining.is_set():
            self._give_back(lease)
            self._let_go(lease)
            return
        thread = self._start(lease)
        while thread.is_alive() and not self._draining.is_set():
            thread.join(IDLE_SECONDS)

    def _work(self, lease: Lease) -> None:
        started, lost = time.monotonic(), self._lost[lease.job.id, lease.token]
        try:
            try:
                with cancellable(lost):
                    outcome = self._take(lease.job)
                reason = outcome.reason if outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR else None
            except (Exception, SystemExit) as error:
                reason = f"{type(error).__name__}: {error}"
                _log.debug("the step failed", exc_info=True)
            if reason is None:
                self._complete(lease, outcome, time.monotonic() - started)
            elif lost.is_set():
                log("dropped", worker=self.name, job=lease.job.id, run=lease.job.run, attempt=lease.attempt)
            elif self._interrupted:
                self._give_back(lease)
            else:
                self._fail(lease, reason)
        finally:
            self._let_go(lease)

    def _complete(self, lease: Lease, outcome: Outcome, seconds: float) -> None:
        try:
            accepted = self._queue.complete(lease, outcome)
        except (QueueError, OSError) as error:
            self._fail(lease, f"its outcome cannot be handed in: {error}")
            return
        with self._lock:
            self._completed += accepted
            self._failures_in_a_row, self._failure = 0, ""
        event = "completed" if accepted else "late"
        facts = {"kind": outcome.kind.value, "seconds": round(seconds, 3), "cached": outcome.cached}
        log(event, worker=self.name, job=lease.job.id, run=lease.job.run, attempt=lease.attempt, **facts)

    def _fail(self, lease: Lease, reason: str) -> None:
        reason = f"{self.name}: {reason}"
        log("failed", worker=self.name, job=lease.job.id, run=lease.job.run, attempt=lease.attempt, reason=reason)
        with self._lock:
            self._failed += 1
            self._failures_in_a_row += 1
            self._failure = reason
            if self._failures_in_a_row > 1:
                # A broken host fails fast, and would use up the attempts of every job in the queue.
                pause = min(2.0 ** (self._failures_in_a_row - 2), LONGEST_PAUSE_SECONDS)
                self._pause_until = time.monotonic() + pause
        with self._asking("give a job back"):  # On failure nothing is lost: the lease runs out.
            self._queue.fail(lease, reason)

    def _give_back(self, lease: Lease) -> None:
        """Return an interrupted job to the queue: neither it nor the host failed."""
        log("released", worker=self.name, job=lease.job.id, run=lease.job.run, attempt=lease.attempt)
        with self._asking("give a job back"):
            self._queue.release(lease)

    def _finish(self) -> None:
        """Wait for running steps; interrupt them if they take too long."""
        log("draining", worker=self.name, running=len(self._leases))
        self._await_idle(self._drain_seconds, unless=self._aborting)
        if self._leases:
            log("interrupting", worker=self.name, running=len(self._leases))
            self._interrupted = True
            self._interrupt()
            self._await_idle(ABORT_SECONDS)
        for lease in list(self._leases.values()):
            self._give_back(lease)

    def _await_idle(self, seconds: float, unless: threading.Event | None = None, besides: int = 0) -> None:
        """Wait until no more than `besides` leases are held."""
        end = time.monotonic() + seconds
        while len(self._leases) > besides and time.monotonic() < end and not (unless and unless.is_set()):
            time.sleep(0.02)

    def _pulse(self) -> None:
        """Renew leases and report, until stopped."""
        next_heartbeat = next_report = 0.0
        while True:
            now = time.monotonic()
            if now >= next_heartbeat:
                next_heartbeat = now + self._lease_seconds / 3
                self._renew()
            if now >= next_report:
                next_report = now + REPORT_SECONDS
                self._report("draining" if self._draining.is_set() else self._health())
            if self._parent is not None and not self._aborting.is_set() and not self._parent.is_running():
                log("orphaned", worker=self.name, parent=self._parent.pid)
                self.abort()
            if self._stopped.wait(min(IDLE_SECONDS, self._lease_seconds / 3)):
                return

    def _renew(self) -> None:
        lost: list[Lease] = []
        with self._asking("renew leases"):
            lost = self._queue.heartbeat(list(self._leases.values()))
        for lease in lost:
            # A step that ended meanwhile has released its lease itself.
            if (lease.job.id, lease.token) in self._leases:
                log("lease_lost", worker=self.name, job=lease.job.id, attempt=lease.attempt)
                self._cancel(lease)

    def _cancel(self, lease: Lease) -> None:
        """End a step that another worker takes by now: its result would not be accepted."""
        with self._lock:
            event = self._lost.get((lease.job.id, lease.token))
        if event is not None:
            event.set()

    def _health(self) -> str:
        return next(iter(list(self._troubles.values())), self._failure) or "ok"

    def _report(self, health: str) -> None:
        report = report_of(self._slots, self._capabilities, health, self._completed, self._failed)
        with self._asking("report"):
            self._queue.report(self.name, report)

    @contextlib.contextmanager
    def _asking(self, call: str) -> Iterator[None]:
        """Wrap a call to the queue: its error stays this worker's health until the same call succeeds."""
        try:
            yield
            self._troubles.pop(call, None)
        except (QueueError, OSError) as error:
            self._troubles[call] = f"cannot {call}: {error}"
            log("trouble", worker=self.name, reason=self._troubles[call])


def log(event: str, **fields: Any) -> None:
    """Log one line of JSON: event, time and fields."""
    _log.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=False))
