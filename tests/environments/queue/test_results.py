"""What the trainer does with results: wait, consume once, roll back, cancel, notice silence. Both engines."""

import dataclasses
import threading

import pytest
from queue_cases import job, outcome, outstanding

from environments.protocol import OutcomeKind, Requirements
from environments.queue import QueueError, RetryPolicy
from environments.queue.base import Capabilities, WorkerReport

ANY = Capabilities()


@pytest.fixture
def queue(connect, clock):
    return connect(clock=clock, retries=RetryPolicy(max_attempts=1))


def work(queue, count=1, note=""):
    for _ in range(count):
        assert queue.complete(queue.claim("w", ANY), outcome(note))


def test_wait_returns_when_enough_are_finished(queue):
    jobs = [job(i) for i in range(4)]
    ids = [each.id for each in jobs]
    queue.enqueue(jobs)
    work(queue, 2)
    assert set(queue.wait(ids, 5, count=2)) == set(ids[:2])
    assert set(queue.wait(ids, 0.05)) == set(ids[:2])  # The time-out gives what there is.
    threading.Timer(0.1, work, (queue, 2)).start()
    assert set(queue.wait(ids, 30)) == set(ids)
    assert queue.wait([], 30) == {}


def test_a_result_is_consumed_once_and_given_back_by_a_rollback(queue):
    jobs = [job(i) for i in range(4)]
    ids = [each.id for each in jobs]
    queue.enqueue(jobs)
    work(queue, 4)
    queue.consume("run", 1, ids[:2])
    queue.consume("run", 1, ids[:2])  # A repeated call of the same step.
    queue.consume("run", 2, ids[2:])
    assert queue.consumed("run") == {ids[0]: 1, ids[1]: 1, ids[2]: 2, ids[3]: 2}
    with pytest.raises(QueueError, match="step 1 used it"):
        queue.consume("run", 3, [ids[0]])
    assert queue.rollback("run", 1) == 2
    assert queue.consumed("run") == {ids[0]: 1, ids[1]: 1}
    assert queue.claim("w", ANY) is None  # Nothing executes again.
    queue.consume("run", 2, ids[2:])


def test_consuming_is_all_or_nothing_and_says_what_is_wrong(queue):
    done, leased, elsewhere = job(0), job(1), job(2, run="other")
    queue.enqueue([done, leased, elsewhere])
    work(queue, 1)
    queue.claim("w", ANY)
    work(queue, 1)
    for refused, why in ((leased, "leased"), (elsewhere, "run 'other'"), (job(9), "never enqueued")):
        with pytest.raises(QueueError, match=why):
            queue.consume("run", 1, [done.id, refused.id])
    assert queue.consumed("run") == {}


def test_cancelling_takes_only_what_is_queued_and_old(queue):
    old, older, leased, new = job(0, version=3), job(1, version=2), job(2, version=1), job(3, version=4)
    queue.enqueue([leased])
    lease = queue.claim("w", ANY)
    queue.enqueue([old, older, new, job(4, run="other")])
    assert queue.cancel("run", older_than_version=4) == 2
    assert outstanding(queue) == {1: 1, 4: 1}
    assert queue.outcomes([old.id])[old.id].kind is OutcomeKind.INFRASTRUCTURE_ERROR
    assert "older than version 4" in queue.outcomes([old.id])[old.id].reason
    assert queue.complete(lease, outcome())
    assert queue.cancel("run") == 1
    assert outstanding(queue) == {}
    assert outstanding(queue, "other") == {0: 1}


def test_a_cancelled_job_that_is_asked_for_again_is_queued_again(queue):
    queue.enqueue([job()])
    queue.cancel("run")
    assert queue.enqueue([job()]) == 1
    assert queue.outcomes([job().id]) == {}
    work(queue)
    assert queue.outcomes([job().id])[job().id].kind is OutcomeKind.SCORED


def report(**fields):
    return WorkerReport(**{"host": "h", "pid": 1, "version": "1", "slots": 2, "capabilities": ANY} | fields)


def test_silence_is_an_error_with_its_reason(queue, clock):
    queue.check_alive("run", 60)  # Nothing is waited for.
    queue.enqueue([job(0, requirements=Requirements(gpus=1)), job(1)])
    queue.check_alive("run", 60)  # Too early to tell.
    clock.now += 61
    with pytest.raises(QueueError, match="no worker is alive; none ever was"):
        queue.check_alive("run", 60)
    queue.report("w1", report(health="stopped, cannot start: no bubblewrap"))
    with pytest.raises(QueueError, match="no bubblewrap"):
        queue.check_alive("run", 60)
    queue.report("w2", report())
    with pytest.raises(QueueError, match=r"gpus 1 \(offers 0\)"):
        queue.check_alive("run", 60)
    queue.report("w2", report(health="the disk is full"))
    with pytest.raises(QueueError, match="w2 says: the disk is full"):
        queue.check_alive("run", 60)
    work(queue)
    queue.check_alive("run", 60)  # Something came back.
    clock.now += 1
    queue.report("w2", report())
    clock.now += 61
    with pytest.raises(QueueError, match="w2, was seen 61 s ago"):
        queue.check_alive("run", 60)


def test_a_run_whose_jobs_fail_says_so_and_why(queue, clock):
    queue.enqueue([dataclasses.replace(job(i), run="fails") for i in range(3)])
    assert queue.failures("fails") == ""
    failing = queue.claim("w", ANY)
    queue.release(queue.claim("w", ANY))
    assert queue.failures("fails") == "", "a job that was given back did not fail"
    queue.fail(failing, "host: the image is missing")
    assert queue.failures("fails") == ""  # Dead at once here; the trainer has its outcome.


def test_failures_of_jobs_that_are_tried_again_are_told_with_the_last_reason(connect, clock):
    queue = connect(clock=clock)
    queue.enqueue([job(i) for i in range(3)])
    for reason in ("first", "host: the image is missing"):
        queue.fail(queue.claim("w", ANY), reason)
        clock.now += 0.1
    told = queue.failures("run")
    assert told == "2 of 3 jobs that are out failed and are tried again; the last: host: the image is missing"
    assert queue.failures("other") == ""


def test_retry_and_purge(queue, clock):
    failed, done, used = job(0), job(1), job(2)
    queue.enqueue([failed, done, used])
    queue.fail(queue.claim("w", ANY), "missing image")
    work(queue, 2)
    queue.consume("run", 1, [used.id])
    assert queue.retry(run="other") == 0
    assert queue.retry() == 1
    assert queue.claim("w", ANY).attempt == 1
    assert queue.retry(job_ids=[done.id, used.id]) == 1  # Never one that was trained on.
    assert queue.outcomes([done.id]) == {}
    queue.report("gone", report())
    clock.now += 100
    assert queue.purge(older_than_seconds=50, run="other") == 0
    assert queue.purge(older_than_seconds=50) == 1
    assert queue.status()["workers"] == []
    assert set(queue.outcomes([failed.id, done.id, used.id])) == set()


def test_status_counts_everything(queue, clock):
    queue.enqueue([job(i, version=i % 2) for i in range(5)])
    queue.report("w", report(health="ok", completed=7))
    queue.fail(queue.claim("w", ANY), "broken")
    work(queue)
    queue.claim("w", ANY, lease_seconds=60)
    clock.now += 30
    status = queue.status()
    run = status["runs"]["run"]
    assert {state: run[state] for state in ("queued", "leased", "done", "dead", "cancelled", "consumed")} == {
        "queued": 2,
        "leased": 1,
        "done": 1,
        "dead": 1,
        "cancelled": 0,
        "consumed": 0,
    }
    assert run["oldest_queued_seconds"] == pytest.approx(30, abs=0.01)
    assert run["outstanding_by_version"] == {"0": 2, "1": 1}
    assert status["attempts"] == {"0": 2, "1": 3}
    assert status["executions_per_minute"]["last_minute"] == 2
    assert status["outcomes"] == {"scored": {"count": 1, "seconds": 2.0, "mean_seconds": 2.0}}
    (lease,) = status["leases"]
    assert lease["worker"] == "w"
    assert lease["remaining_seconds"] == pytest.approx(30, abs=0.01)
    (worker,) = status["workers"]
    assert (worker["health"], worker["completed"], worker["slots"]) == ("ok", 7, 2)
    assert worker["last_seen_seconds"] == pytest.approx(30, abs=0.01)
    assert status["dead_letters"][0]["reason"] == "broken"
