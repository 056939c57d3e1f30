"""The trainer's end of the queue: order kept, results asked for once, silence never waited out."""

import contextlib
import threading

import pytest

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import open_queue
from environments.queue.base import Capabilities, QueueError
from mlagent_jax.agents import job_client as module
from mlagent_jax.agents.job_client import JobClient

STATE = State("task@1", (), "snapshot", "x = 1", 0.5)
CAPABILITIES = Capabilities(cores=4, memory_mb=8192)


def job(number):
    return Job("run", 0, STATE, number, f"action {number}")


def outcome(number, kind=OutcomeKind.SCORED, cached=False):
    return Outcome(
        kind=kind,
        observation=str(number),
        snapshot="s",
        script="",
        metric_before=0.5,
        metric_after=0.6,
        scale=Scale(0.5, 1.0, True),
        reward=0.7,
        progress=("parsed", "applied", "started"),
        cached=cached,
    )


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db")) as queue:
        yield queue


def work(queue, numbers, **fields):
    """Finish all queued jobs, in an order of its own."""
    leases = [queue.claim("worker", CAPABILITIES) for _ in numbers]
    for lease in reversed(leases):
        assert queue.complete(lease, outcome(lease.job.sample, **fields))


def test_outcomes_come_in_the_order_of_the_jobs(queue):
    jobs = [job(n) for n in range(5)]
    job_client = JobClient(queue, "run", 60.0)
    job_client.submit(jobs)
    work(queue, range(5))
    seen = []
    outcomes = job_client.gather(jobs, lambda o: seen.append(o.observation))
    assert [o.observation for o in outcomes] == ["0", "1", "2", "3", "4"]
    assert sorted(seen) == ["0", "1", "2", "3", "4"]


def test_results_from_before_a_restart_are_not_executed_again(queue):
    jobs = [job(n) for n in range(3)]
    JobClient(queue, "run", 60.0).submit(jobs)
    work(queue, range(3))
    again = JobClient(queue, "run", 60.0)
    assert len(again.gather(jobs)) == 3
    assert queue.claim("worker", CAPABILITIES) is None


def test_only_real_executions_are_counted(queue):
    jobs = [job(n) for n in range(4)]
    job_client = JobClient(queue, "run", 60.0)
    job_client.submit(jobs)
    work(queue, range(2))
    work(queue, range(2), cached=True)
    job_client.gather(jobs)
    assert job_client.take_executions() == 2
    assert job_client.take_executions() == 0


def test_workers_that_cannot_start_end_the_wait_with_the_reason(queue):
    job_client = JobClient(queue, "run", 600.0, lambda: "bubblewrap is missing")
    with pytest.raises(QueueError, match="bubblewrap is missing"):
        job_client.gather([job(0)])


def test_what_waited_while_the_run_was_stopped_is_not_silence(queue, monkeypatch):
    """The queue sees jobs of yesterday and workers that have not reported yet: it is not asked before its time."""
    monkeypatch.setattr(queue, "check_alive", lambda run, seconds: pytest.fail("asked too early"))
    JobClient(queue, "run", 600.0).submit([job(0)])
    worker = threading.Timer(0.2, work, (queue, range(1)))
    worker.start()
    assert len(JobClient(queue, "run", 600.0).gather([job(0)])) == 1
    worker.join()


def test_silence_ends_the_wait(queue):
    with pytest.raises(QueueError, match="worker"):
        JobClient(queue, "run", 0.1).gather([job(0)])


def test_jobs_that_fail_are_told_while_nothing_comes_back_and_when_they_are_given_up(queue, caplog, monkeypatch):
    jobs = [job(n) for n in range(2)]
    job_client = JobClient(queue, "run", 600.0)
    job_client.submit(jobs)
    monkeypatch.setattr(module, "WARNING_INTERVAL_SECONDS", 0.0)
    queue.fail(queue.claim("worker", CAPABILITIES), "host: the image is missing")
    arrivals = job_client.arrivals(jobs)
    assert next(arrivals)[0] == {}
    assert "1 of 2 jobs that are out failed and are tried again; the last: host: the image is missing" in caplog.text
    queue.complete(queue.claim("worker", CAPABILITIES), outcome(1))
    assert len(next(arrivals)[0]) == 1
    queue.cancel("run")
    caplog.clear()
    assert next(arrivals)[0][jobs[0].id].kind is OutcomeKind.INFRASTRUCTURE_ERROR
    assert caplog.text == ""


def test_a_job_that_is_given_up_is_told_with_its_reason(queue, caplog):
    job_client = JobClient(queue, "run", 600.0)
    job_client.submit([job(0)])
    lease = queue.claim("worker", CAPABILITIES)
    queue._execute(queue._leases.set_aside, {"job_id": lease.job.id, "held_token": lease.token, "failure": "no job"})
    job_client.gather([job(0)])
    assert "1 jobs failed for good, the last: no job" in caplog.text
