"""Workers: slots, leases kept alive, failures that are ours, draining, supervision. On a SQLite queue."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from environments.cancellation import is_cancelled
from environments.protocol import Job, Outcome, OutcomeKind, Requirements, Scale, State
from environments.queue import QueueError, RetryPolicy, open_queue
from environments.queue.base import QUEUE_VARIABLE, Capabilities
from environments.queue.engine import take_credentials
from environments.sandbox.base import SandboxError
from environments.worker import host as worker_host
from environments.worker import supervision
from environments.worker.host import host_capabilities
from environments.worker.supervision import WorkerHandle, start_workers
from environments.worker.worker import Worker

PROGRAM = Path(__file__).with_name("worker_program.py")
ROOT = Path(__file__).resolve().parents[3]


def job(sample=0, action="sleep 0", **fields):
    return Job("run", 0, State("task@1", (), "snap", "print()", 0.5), sample, action, **fields)


def outcome(job, kind=OutcomeKind.NO_EDIT, reason=""):
    state = job.state
    return Outcome(
        kind, "", state.snapshot, state.script, state.metric, None, Scale(0.0, 1.0, True), reward=0.5, reason=reason
    )


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def queue(url):
    queue = open_queue(url, retries=RetryPolicy(max_attempts=2, backoff_seconds=0.01))
    yield queue
    queue.close()


@contextlib.contextmanager
def working(queue, take, slots=1, capabilities=None, **options):
    worker = Worker(queue, take, slots, capabilities or Capabilities(), **options)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.abort()
        thread.join(30)
        assert not thread.is_alive()


def ids(jobs):
    return [each.id for each in jobs]


def test_as_many_steps_at_once_as_there_are_slots(queue):
    jobs, together = [job(sample) for sample in range(6)], threading.Barrier(3)

    def take(job):
        together.wait(30)  # Passes only three at once.
        return outcome(job)

    queue.enqueue(jobs)
    with working(queue, take, slots=3):
        found = queue.wait(ids(jobs), 30)
    assert {each.kind for each in found.values()} == {OutcomeKind.NO_EDIT}
    assert len(found) == 6


def test_failures_of_ours_are_retried_and_then_dead_with_their_reason(queue):
    raised, returned, fine = job(0), job(1), job(2)

    def take(job):
        if job == raised:
            raise OSError("No space left on device")
        if job == returned:
            return outcome(job, OutcomeKind.INFRASTRUCTURE_ERROR, reason="the image is missing")
        return outcome(job)

    queue.enqueue([raised, returned, fine])
    with working(queue, take):
        found = queue.wait(ids([raised, returned, fine]), 60)
    assert "No space left" in found[raised.id].reason
    assert "the image is missing" in found[returned.id].reason
    assert found[raised.id].kind is found[returned.id].kind is OutcomeKind.INFRASTRUCTURE_ERROR
    assert found[fine.id].kind is OutcomeKind.NO_EDIT
    assert queue.status()["attempts"] == {"1": 1, "2": 2}


@pytest.mark.slow
def test_a_long_steps_lease_is_kept_and_nobody_else_takes_it(queue):
    queue.enqueue([job()])
    taken = []

    def take(job):
        taken.append(job)
        time.sleep(1.0)
        return outcome(job)

    with working(queue, take, slots=2, lease_seconds=0.5):
        found = queue.wait([job().id], 30)
    assert found[job().id].kind is OutcomeKind.NO_EDIT
    assert len(taken) == 1


def test_a_step_whose_lease_was_lost_is_cancelled_and_is_no_failure_of_the_worker(queue, monkeypatch):
    queue.enqueue([job()])
    ended, taken = threading.Event(), []

    def take(job):
        taken.append(job)
        while not is_cancelled():
            time.sleep(0.01)
        ended.set()
        raise SandboxError("the step was cancelled")

    monkeypatch.setattr(type(queue), "heartbeat", lambda self, leases: leases[:1] if taken else [])
    with working(queue, take, slots=1, lease_seconds=0.3) as worker:
        assert ended.wait(20)
    assert (worker.completed, worker._failed, worker._pause_until) == (0, 0, 0.0)


def test_a_broken_host_does_not_use_up_every_jobs_attempts(queue):
    queue.enqueue([job(sample) for sample in range(40)])
    taken = []

    def take(job):
        taken.append(job)
        raise OSError("No space left on device")

    with working(queue, take):
        queue.wait(ids([job(0)]), 1.0)
    assert len(taken) <= 4


def test_a_worker_takes_only_what_it_offers(queue):
    queue.enqueue([job(0, requirements=Requirements(gpus=1)), job(1)])
    with working(queue, outcome, capabilities=Capabilities()):
        assert queue.wait(ids([job(1)]), 30)
    assert queue.status()["runs"]["run"]["outstanding_by_version"] == {"0": 1}


def test_draining_finishes_what_runs_and_starts_nothing(queue):
    queue.enqueue([job(0), job(1)])
    running, go_on = threading.Event(), threading.Event()

    def take(job):
        running.set()
        go_on.wait(30)
        return outcome(job)

    with working(queue, take) as worker:
        assert running.wait(30)
        worker.stop()
        go_on.set()
        assert queue.wait([job(0).id], 30)
    assert queue.status()["runs"]["run"]["outstanding_by_version"] == {"0": 1}
    assert queue.status()["runs"]["run"]["queued"] == 1
    assert queue.status()["workers"][0]["health"] == "stopped"


def test_what_does_not_finish_in_time_is_interrupted_and_given_back(queue):
    queue.enqueue([job()])
    running, closed = threading.Event(), threading.Event()

    def take(job):
        running.set()
        closed.wait(30)
        raise OSError("the sandbox was closed")

    with working(queue, take, interrupt=closed.set, drain_seconds=0.1) as worker:
        assert running.wait(30)
        worker.stop()
    given_back = queue.claim("other", Capabilities(), 60)
    assert given_back.attempt == 1, "a drain spends no attempt"
    assert queue.status()["workers"][0]["failed"] == 0


def test_a_queue_that_is_away_for_a_while_is_survived(queue):
    class Flaky:
        def __init__(self):
            self.troubles = 1

        def __getattr__(self, name):
            return getattr(queue, name)

        def claim(self, *arguments):
            if self.troubles:
                self.troubles -= 1
                raise QueueError("the database is away")
            return queue.claim(*arguments)

    queue.enqueue([job()])
    with working(Flaky(), outcome):
        assert queue.wait([job().id], 30)


def test_a_step_that_asks_the_process_to_exit_is_a_failure_of_that_step(queue):
    def take(job):
        sys.exit(3)

    queue.enqueue([job()])
    with working(queue, take):
        found = queue.wait([job().id], 60)
    assert "SystemExit: 3" in found[job().id].reason


def test_a_job_whose_lease_ran_out_is_executed_alone(queue):
    suspect = job(0, "suspect")
    queue.enqueue([suspect])
    queue.claim("died", Capabilities(), lease_seconds=0.05)
    until(lambda: queue.claim("w", Capabilities(cores=0)) is None and queue.failures("run"))
    others = [job(sample, "other") for sample in range(1, 9)]
    queue.enqueue(others)
    running, together, lock = set(), [], threading.Lock()

    def take(job):
        with lock:
            running.add(job)
            together.append(set(running))
        time.sleep(0.05)
        with lock:
            running.remove(job)
        return outcome(job)

    with working(queue, take, slots=4):
        assert len(queue.wait(ids([suspect, *others]), 60)) == 9
    assert [steps for steps in together if suspect in steps] == [{suspect}]
    assert max(map(len, together)) > 1


def test_a_worker_that_drains_gives_a_job_back_that_waits_to_be_alone(queue):
    queue.enqueue([job(0)])
    queue.claim("died", Capabilities(), lease_seconds=0.05)
    until(lambda: queue.claim("w", Capabilities(cores=0)) is None and queue.failures("run"))
    running, go_on = threading.Event(), threading.Event()

    def take(job):
        running.set()
        go_on.wait(30)
        return outcome(job)

    queue.enqueue([job(1)])
    leases = lambda: queue.status()["leases"]  # noqa: E731
    with working(Later(queue, job(1)), take, slots=2) as worker:
        assert running.wait(30)
        until(lambda: len(leases()) == 2)
        worker.stop()
        until(lambda: len(leases()) == 1)
        go_on.set()
    assert queue.claim("next", Capabilities()).attempt == 2


class Later:
    """A queue that gives out one job before all others."""

    def __init__(self, queue, first):
        self._queue, self._first = queue, first

    def __getattr__(self, name):
        return getattr(self._queue, name)

    def claim(self, *arguments):
        lease = self._queue.claim(*arguments)
        if self._first is not None and lease is not None and lease.job != self._first:
            self._queue.release(lease)
            time.sleep(0.01)
            other = self._queue.claim(*arguments)
            if other is not None and other.job != self._first:
                self._queue.release(other)
                return None
            lease = other
        if lease is not None:
            self._first = None
        return lease


def test_what_troubled_a_worker_is_over_when_it_goes_well_again(queue):
    class Refusing:
        refuses = True

        def __getattr__(self, name):
            return getattr(queue, name)

        def claim(self, *arguments):
            if self.refuses:
                raise QueueError("the database is away")
            return queue.claim(*arguments)

    refusing, broken = Refusing(), threading.Event()

    def take(job):
        if broken.is_set():
            raise OSError("No space left on device")
        return outcome(job)

    with working(refusing, take) as worker:
        until(lambda: worker._health() == "cannot claim: the database is away")
        refusing.refuses = False
        until(lambda: worker._health() == "ok")
        broken.set()
        queue.enqueue([job(0)])
        until(lambda: "No space left" in worker._health())
        broken.clear()
        queue.enqueue([job(1)])
        assert queue.wait([job(1).id], 60)
        until(lambda: worker._health() == "ok")


def test_the_leases_of_all_slots_are_renewed_by_one_call(queue):
    calls, renewed = [], threading.Event()

    class Counting:
        def __getattr__(self, name):
            return getattr(queue, name)

        def heartbeat(self, leases):
            calls.append(len(leases))
            if len(leases) == 3:
                renewed.set()
            return queue.heartbeat(leases)

    def take(job):
        renewed.wait(60)
        return outcome(job)

    jobs = [job(sample) for sample in range(3)]
    queue.enqueue(jobs)
    with working(Counting(), take, slots=3, lease_seconds=1.5):
        found = queue.wait(ids(jobs), 60)
    assert {each.kind for each in found.values()} == {OutcomeKind.NO_EDIT}
    assert max(calls) == 3


def test_a_host_offers_what_its_control_groups_and_its_cpuset_leave(tmp_path, monkeypatch):
    group = tmp_path / "pod" / "container"
    group.mkdir(parents=True)
    monkeypatch.setattr(worker_host.cgroups, "mounts", lambda: {"unified": tmp_path})
    monkeypatch.setattr(worker_host.cgroups, "own_group", lambda mount, name: group)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert host_capabilities("image", frozenset()).cores == 6
    (group / "cpu.max").write_text("max 100000\n")
    (group / "memory.max").write_text("max\n")
    assert host_capabilities("image", frozenset()).cores == 6
    (tmp_path / "pod" / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "pod" / "memory.max").write_text(str(300 << 20))
    offered = host_capabilities("image", frozenset())
    assert (offered.cores, offered.memory_mb) == (2, 300)
    (group / "cpu.max").unlink()
    (group / "cpu.cfs_quota_us").write_text("50000")
    (group / "cpu.cfs_period_us").write_text("100000")
    (group / "memory.limit_in_bytes").write_text(str(100 << 20))
    offered = host_capabilities("image", frozenset(), memory_mb=50)
    assert (offered.cores, offered.memory_mb) == (1, 50)


@pytest.mark.slow
def test_neither_worker_nor_environment_imports_jax():
    program = "import sys, environments.worker, environments.step; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def handle(url, tmp_path, *options, program=PROGRAM):
    (tmp_path / "toy@1").mkdir(exist_ok=True)
    (tmp_path / "toy@1" / "task.json").touch()
    command = [sys.executable, str(program), f"--tasks={tmp_path}", f"--store={tmp_path}/store", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), QUEUE_VARIABLE: url}
    return WorkerHandle(command, environment, tmp_path / "worker.log")


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_process_drains_on_sigterm_and_logs_lines_of_json(queue, url, tmp_path):
    queue.enqueue([job(0, "sleep 0.5"), job(1, "sleep 0")])
    worker = handle(url, tmp_path, "--slots=1")
    until(lambda: queue.status()["leases"])
    worker.stop()
    assert queue.outcomes([job(0, "sleep 0.5").id])
    first, *events, last = [json.loads(line)["event"] for line in worker.log_path.read_text().splitlines()]
    assert (first, last) == ("started", "stopped")
    assert "completed" in events
    assert queue.status()["workers"][0]["capabilities"]["guarantees"] == ["network"]


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_its_job_is_done(queue, url, tmp_path):
    queue.enqueue([job(0, "sleep 1.5")])
    worker = handle(url, tmp_path, "--slots=1", "--lease_seconds=1")
    until(lambda: queue.status()["leases"])
    first = worker.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: worker.pid != first)
    assert worker.alive()
    found = queue.wait([job(0, "sleep 1.5").id], 60)
    worker.stop()
    assert [each.kind for each in found.values()] == [OutcomeKind.NO_EDIT]
    assert queue.status()["attempts"] == {"2": 1}
    assert not psutil.pid_exists(worker.pid)
    assert not worker.alive()


@pytest.mark.slow
def test_jobs_that_kill_their_worker_are_set_aside_and_the_rest_is_done(queue, url, tmp_path):
    queue = open_queue(url, retries=RetryPolicy(backoff_seconds=0.1))
    poison = [job(sample, "die") for sample in range(2)]
    healthy = [job(sample, "sleep 0") for sample in range(2, 6)]
    queue.enqueue([*poison, *healthy])
    worker = handle(url, tmp_path, "--slots=2", "--lease_seconds=1")
    found = queue.wait(ids([*poison, *healthy]), 300)
    assert worker.failure() is None
    worker.stop()
    queue.close()
    assert {found[each.id].kind for each in healthy} == {OutcomeKind.NO_EDIT}
    for each in poison:
        assert found[each.id].kind is OutcomeKind.INFRASTRUCTURE_ERROR
        assert "may kill its workers" in found[each.id].reason


@pytest.mark.slow
def test_a_process_that_cannot_start_is_given_up_with_its_reason(queue, url, tmp_path):
    worker = handle(url, tmp_path, "--sandbox=docker")
    until(lambda: not worker.alive())
    assert "no Docker engine here" in worker.failure()
    assert "no Docker engine here" in queue.status()["workers"][0]["health"]
    worker.stop()


def test_a_worker_offers_the_second_model_that_it_is_told_of_and_keeps_its_key_to_itself(
    queue, url, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLAGENT_EDITOR_KEY", "sk-s3cret")
    worker = handle(url, tmp_path, "--editor_url=http://localhost:1/v1", "--editor_model=m")
    until(lambda: queue.status()["workers"])
    worker.stop()
    offered, network = queue.status()["workers"][0]["capabilities"]["guarantees"]
    assert (offered.rpartition(":")[0], network) == ("editor:m", "network")
    assert "sk-s3cret" not in worker.log_path.read_text()


@pytest.mark.slow
def test_a_second_model_without_a_name_is_a_worker_that_cannot_start(queue, url, tmp_path):
    worker = handle(url, tmp_path, "--editor_url=http://localhost:1/v1")
    until(lambda: not worker.alive())
    assert "MLAGENT_EDITOR_MODEL is missing" in worker.failure()
    worker.stop()


def test_a_worker_ends_when_its_trainer_was_killed(queue, url, tmp_path):
    trainer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    worker = handle(url, tmp_path, f"--parent_pid={trainer.pid}")
    until(lambda: queue.status()["workers"])
    trainer.kill()
    until(lambda: queue.status()["workers"][0]["health"] == "stopped")
    trainer.wait()
    worker.stop()


def test_what_a_worker_starts_finds_no_credentials_of_the_queue(queue, url, tmp_path, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    queue.enqueue([job(0, "environment")])
    worker = handle(url, tmp_path)
    found = queue.wait([job(0, "environment").id], 120)[job(0, "environment").id].observation
    worker.stop()
    assert "PATH=" in found
    assert not any(hidden in found for hidden in (QUEUE_VARIABLE, url, "PGPASSWORD", "s3cret"))


@pytest.mark.parametrize(
    "url, complete",
    [
        ("postgresql://u@host/db?sslmode=require", "postgresql://u:p%40ss@host/db?sslmode=require"),
        ("postgresql://u:own@host/db", "postgresql://u:own@host/db"),
        ("sqlite:////queue.db", "sqlite:////queue.db"),
    ],
)
def test_credentials_of_the_environment_move_into_the_url(url, complete):
    variables = {QUEUE_VARIABLE: url, "PGPASSWORD": "p@ss", "PATH": "/bin"}
    assert take_credentials(url, variables) == complete
    assert variables == {"PATH": "/bin"}


def test_the_queues_password_is_in_no_command_line(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(supervision, "WorkerHandle", lambda *arguments: started.append(arguments))
    start_workers("postgresql://u:s3cret@host/db", tmp_path, "gs://bucket", "auto", 3, tmp_path / "log")
    ((command, environment, log_path),) = started
    assert "s3cret" not in " ".join(command)
    assert environment[QUEUE_VARIABLE] == "postgresql://u:s3cret@host/db"
    assert "--slots=3" in command
    assert f"--parent_pid={os.getpid()}" in command
    assert log_path == tmp_path / "log"
