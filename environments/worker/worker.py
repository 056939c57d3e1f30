"""The CPU host's program: lease a job, take its step, hand in the outcome; again.

    python -m environments.worker --queue=URL --tasks=DIR --store=URL --slots=8 --sandbox=auto

One process holds one sandbox and `slots` threads; one more thread renews the leases and reports. Every failure that is
ours goes back to the queue as a failure, never as an outcome. SIGTERM drains: nothing new is claimed, what runs is
finished, and what is not finished after a while is given back. A killed worker needs no clean-up: its leases run out.

A trainer starts a worker for its own host with `environments.worker.supervision.start_workers`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from environments.protocol import VERSION, Job, Outcome, OutcomeKind
from environments.queue import QueueError, RewardQueue, open_queue
from environments.queue.base import Capabilities, Changes, Lease, WorkerReport
from environments.queue.engine import take_credentials
from environments.worker.supervision import QUEUE_VARIABLE, WorkerHandle, start_workers

__all__ = ["Worker", "WorkerHandle", "main", "start_workers"]

IDLE_SECONDS = 1.0
"""Longest time between two looks for work, which also finds jobs whose backoff ended."""
REPORT_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 30.0
ABORT_SECONDS = 10.0
"""What an aborted step may take to come back."""

_log = logging.getLogger("mlagent.worker")


class Worker:
    """Slots on one queue. `run` blocks until `stop` or `abort` is called, from a signal handler or another thread.

    Args:
      take: takes a job's step. An exception, or an outcome that is an infrastructure error, is our failure.
      slots: steps at once.
      interrupt: makes running steps fail soon; called when draining takes too long.
      lease_seconds: a lost worker's job is given to another after so long.
      drain_seconds: how long running steps may take to finish once draining.
      parent_pid: abort when this process is gone.
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
        self._parent = None if parent_pid is None else _process(parent_pid)
        self._free = threading.Semaphore(slots)
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._draining, self._aborting, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._completed = self._failed = self._failures_in_a_row = 0
        self._pause_until = 0.0
        self._trouble = ""

    @property
    def completed(self) -> int:
        """Results accepted so far."""
        return self._completed

    def stop(self) -> None:
        """Claim nothing more, and finish what runs; the second call aborts."""
        if self._draining.is_set():
            self._aborting.set()
        self._draining.set()

    def abort(self) -> None:
        """Claim nothing more; interrupt what runs and give it back."""
        self._aborting.set()
        self._draining.set()

    def run(self) -> None:
        """Work until told to stop."""
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
        if self._draining.is_set():  # While this waited for a slot.
            return
        lease = None
        try:
            # One at a time, however many slots are free: a few jobs spread over many hosts.
            lease = self._queue.claim(self.name, self._capabilities, self._lease_seconds)
        except QueueError as error:
            self._note_trouble(f"cannot claim: {error}")
        if lease is None:
            self._free.release()
            added.wait(IDLE_SECONDS)
            return
        with self._lock:
            self._leases[lease.job.id] = lease
        # Daemons: a step that cannot be interrupted does not keep the process.
        threading.Thread(target=self._work, args=(lease,), name=f"job-{lease.job.id[:8]}", daemon=True).start()

    def _work(self, lease: Lease) -> None:
        started = time.monotonic()
        try:
            try:
                outcome = self._take(lease.job)
                reason = outcome.reason if outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR else None
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                _log.debug("the step failed", exc_info=True)
            if reason is None:
                self._complete(lease, outcome, time.monotonic() - started)
            else:
                self._fail(lease, reason)
        finally:
            with self._lock:
                self._leases.pop(lease.job.id, None)
            self._free.release()

    def _complete(self, lease: Lease, outcome: Outcome, seconds: float) -> None:
        try:
            accepted = self._queue.complete(lease, outcome)
        except (QueueError, OSError) as error:
            self._fail(lease, f"its outcome cannot be handed in: {error}")
            return
        with self._lock:
            self._completed += accepted
            self._failures_in_a_row, self._trouble = 0, ""
        event = "completed" if accepted else "late"
        facts = {"kind": outcome.kind.value, "seconds": round(seconds, 3), "cached": outcome.cached}
        log(event, worker=self.name, job=lease.job.id, run=lease.job.run, attempt=lease.attempt, **facts)

    def _fail(self, lease: Lease, reason: str) -> None:
        reason = f"{self.name}: {reason}"
        log("failed", worker=self.name, job=lease.job.id, run=lease.job.run, attempt=lease.attempt, reason=reason)
        with self._lock:
            self._failed += 1
            self._failures_in_a_row += 1
            self._trouble = reason
            if self._failures_in_a_row > 1:
                # A broken host fails fast, and would use up the attempts of every job in the queue.
                pause = min(2.0 ** (self._failures_in_a_row - 2), LONGEST_PAUSE_SECONDS)
                self._pause_until = time.monotonic() + pause
        try:
            self._queue.fail(lease, reason)
        except QueueError as error:  # Nothing is lost: the lease runs out.
            self._note_trouble(f"cannot give a job back: {error}")

    def _finish(self) -> None:
        """Wait for running steps; interrupt them when they take too long."""
        log("draining", worker=self.name, running=len(self._leases))
        self._await_idle(self._drain_seconds, unless=self._aborting)
        if self._leases:
            log("interrupting", worker=self.name, running=len(self._leases))
            self._interrupt()
            self._await_idle(ABORT_SECONDS)
        for lease in list(self._leases.values()):
            self._fail(lease, "the worker was stopped")

    def _await_idle(self, seconds: float, unless: threading.Event | None = None) -> None:
        end = time.monotonic() + seconds
        while self._leases and time.monotonic() < end and not (unless and unless.is_set()):
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
                self._report("draining" if self._draining.is_set() else self._trouble or "ok")
            if self._parent is not None and not _is_running(self._parent) and not self._aborting.is_set():
                log("orphaned", worker=self.name, parent=self._parent.pid)
                self.abort()
            if self._stopped.wait(min(IDLE_SECONDS, self._lease_seconds / 3)):
                return

    def _renew(self) -> None:
        for lease in list(self._leases.values()):
            try:
                if not self._queue.heartbeat(lease):
                    log("lease_lost", worker=self.name, job=lease.job.id, attempt=lease.attempt)
            except QueueError as error:
                self._note_trouble(f"cannot renew a lease: {error}")

    def _report(self, health: str) -> None:
        report = _report_of(self._slots, self._capabilities, health, self._completed, self._failed)
        try:
            self._queue.report(self.name, report)
        except QueueError as error:
            self._note_trouble(f"cannot report: {error}")

    def _note_trouble(self, trouble: str) -> None:
        self._trouble = trouble
        log("trouble", worker=self.name, reason=trouble)


def worker_name() -> str:
    """A name that no other worker process has, or had."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def package_version() -> str:
    """Version of this package, with that of the protocol."""
    try:
        installed = importlib.metadata.version("mlagent-jax")
    except importlib.metadata.PackageNotFoundError:
        installed = "checkout"
    return f"{installed} (protocol {VERSION})"


def _report_of(
    slots: int, capabilities: Capabilities, health: str, completed: int = 0, failed: int = 0
) -> WorkerReport:
    host, pid, version = socket.gethostname(), os.getpid(), package_version()
    return WorkerReport(host, pid, version, slots, capabilities, health[:500], completed, failed)


def log(event: str, **fields: Any) -> None:
    """One line of JSON: what happened, when, and the facts."""
    _log.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=False))


def host_capabilities(
    image: str, guarantees: frozenset[str], cores: int = 0, memory_mb: int = 0, gpus: int = 0
) -> Capabilities:
    """What one execution may get here: the whole host unless said otherwise. The slots share it, so choose their
    number such that so many jobs fit."""
    return Capabilities(
        cores=cores or os.cpu_count() or 1,
        memory_mb=memory_mb or psutil.virtual_memory().total >> 20,
        gpus=gpus,
        image=image,
        guarantees=guarantees,
    )


def _process(pid: int) -> psutil.Process | None:
    """The process, known by its start time too, so that a reused pid is not mistaken for it."""
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise ValueError(f"parent_pid is {pid}, and no such process runs") from None


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _signals(worker: Worker) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains, the second aborts."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: worker.stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m environments.worker", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--queue", default=os.environ.get(QUEUE_VARIABLE), help=f"URL of the queue; default: ${QUEUE_VARIABLE}")
    add("--tasks", type=Path, required=True, help="folder of prepared tasks")
    add("--store", required=True, help="URL or folder of the store, the trainer's")
    add("--slots", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="steps at once")
    add("--sandbox", choices=("auto", "docker", "bubblewrap"), default="auto")
    add("--editor_url", default="", help="endpoint of a second language model; default: $MLAGENT_EDITOR_URL")
    add("--editor_model", default="", help="its name; default: $MLAGENT_EDITOR_MODEL (its key: $MLAGENT_EDITOR_KEY)")
    add("--cores", type=int, default=0, help="cores offered to one execution; default: all")
    add("--memory_mb", type=int, default=0, help="memory offered to one execution; default: all")
    add("--lease_seconds", type=float, default=60.0, help="a lost worker's job is given to another after so long")
    add("--drain_seconds", type=float, default=25.0, help="how long running steps may take to finish on SIGTERM")
    add("--parent_pid", type=int, help="stop when this process is gone")
    arguments = parser.parse_args(argv)
    if not arguments.queue:
        parser.error(f"--queue is missing, and ${QUEUE_VARIABLE} is not set")
    if arguments.slots < 1:
        parser.error(f"--slots is {arguments.slots}; at least 1")
    if not any(arguments.tasks.glob("*/task.json")):
        parser.error(f"--tasks is {arguments.tasks}: no prepared task is there; copy `tasks` of the run's workdir")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker; returns the exit status."""
    from environments.actions.second_model import KEY_VARIABLE, configured_endpoint
    from environments.files.blobs import open_store
    from environments.sandbox import open_sandbox
    from environments.sandbox.base import SandboxError
    from environments.step import Environment

    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with contextlib.ExitStack() as stack:
        try:
            url = take_credentials(arguments.queue, os.environ)  # Nothing that this process starts is to find them.
            store = open_store(arguments.store)
            queue = stack.enter_context(contextlib.closing(open_queue(url, store=store)))
        except (QueueError, OSError) as error:
            log("cannot_start", reason=str(error))
            return 1
        try:
            editor = configured_endpoint(url=arguments.editor_url, model=arguments.editor_model)
            os.environ.pop(KEY_VARIABLE, None)
            sandbox = stack.enter_context(contextlib.closing(open_sandbox(arguments.sandbox)))
            environment = Environment(arguments.tasks, sandbox, store, editor=editor)
            stack.callback(environment.close)
        except (SandboxError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            log("cannot_start", reason=reason)
            queue.report(worker_name(), _report_of(arguments.slots, Capabilities(), f"stopped, cannot start: {reason}"))
            return 1
        guarantees = sandbox.guarantees | ({editor.id} if editor else set())  # A job may ask for this very model.
        capabilities = host_capabilities(
            sandbox.environment_digest, guarantees, arguments.cores, arguments.memory_mb, sandbox.gpus
        )
        worker = Worker(
            queue,
            environment.take,
            arguments.slots,
            capabilities,
            interrupt=sandbox.close,
            lease_seconds=arguments.lease_seconds,
            drain_seconds=arguments.drain_seconds,
            parent_pid=arguments.parent_pid,
        )
        with _signals(worker):
            worker.run()
    return 0
