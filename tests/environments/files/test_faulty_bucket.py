"""A bucket that fails, under every call of the worker and of the trainer: a typed error, a retry, never the end."""

import contextlib

import fakes
import pytest
from faulty_bucket import FOR_EVER, FaultyBucket
from queue_cases import job, outcome

from environments.files import blobs as store_module
from environments.files.blobs import MissingBlobError, StoreError, open_store
from environments.files.snapshots import Snapshots
from environments.protocol import Job, OutcomeKind
from environments.queue import QueueError, RetryPolicy, open_queue
from environments.queue.base import Capabilities
from environments.step import Environment

ANY = Capabilities()
LARGE = "x" * 10_000


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A store in it."""
    monkeypatch.setattr(store_module, "_PAUSE_SECONDS", 0.0)
    FaultyBucket.fail(0)
    yield open_store(f"faulty://{tmp_path.name}")
    FaultyBucket.fail(0)


@pytest.fixture
def queue(bucket, tmp_path):
    retries = RetryPolicy(max_attempts=3, backoff_seconds=0.0)
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db", store=bucket, retries=retries)) as queue:
        yield queue


CALLS = {
    "put": lambda store, identity: store.put(b"new"),
    "get": lambda store, identity: store.get(identity),
    "has": lambda store, identity: store.has(identity),
    "missing": lambda store, identity: store.missing([identity]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_store_raises_what_it_promises_and_outlives_a_failure_that_passes(bucket, call):
    identity = bucket.put(b"kept")
    FaultyBucket.fail(FOR_EVER)
    with pytest.raises(StoreError, match=r"cannot be \w+( \w+)? in faulty://.*HttpError: 503") as caught:
        call(bucket, identity)
    assert not isinstance(caught.value, MissingBlobError)
    FaultyBucket.fail(2)
    call(bucket, identity)


def test_an_access_that_is_refused_is_not_asked_for_again(bucket, monkeypatch):
    asked = []

    def refuse(self, path):
        asked.append(path)
        raise PermissionError("403")

    monkeypatch.setattr(FaultyBucket, "size", refuse)
    with pytest.raises(StoreError, match="403"):
        bucket.has("0" * 64)
    assert len(asked) == 1


def test_what_a_bucket_has_not_is_named(bucket):
    there = {bucket.put(bytes([n])) for n in range(20)}
    gone = {f"{n:064x}" for n in range(3)}
    assert bucket.missing(there | gone) == gone


def test_the_trainers_calls_are_errors_of_the_store_and_the_queue_is_as_before(bucket, queue):
    FaultyBucket.fail(FOR_EVER)
    with pytest.raises(StoreError):
        queue.enqueue([job(0, action=LARGE), job(1, action=LARGE)])
    FaultyBucket.fail(0)
    assert queue.enqueue([job(0, action=LARGE), job(1, action=LARGE)]) == 2
    assert queue.complete(queue.claim("w", ANY), outcome(LARGE))
    FaultyBucket.fail(FOR_EVER)
    with pytest.raises(QueueError, match="repair the store"):
        queue.outcomes([job(0).id, job(0, action=LARGE).id])
    FaultyBucket.fail(0)
    assert queue.outcomes([job(0, action=LARGE).id])


def test_a_claim_survives_and_the_job_is_tried_again(bucket, queue):
    queue.enqueue([job(action=LARGE)])
    FaultyBucket.fail(4)  # One call with all its attempts.
    assert queue.claim("w", ANY).attempt == 2


def test_a_claim_while_the_bucket_is_away_ends_no_worker(bucket, queue):
    queue.enqueue([job(action=LARGE)])
    FaultyBucket.fail(FOR_EVER)
    assert queue.claim("w", ANY) is None
    found = queue.outcomes([job(action=LARGE).id])
    assert [each.kind for each in found.values()] == [OutcomeKind.INFRASTRUCTURE_ERROR]
    assert "503" in next(iter(found.values())).reason


def test_a_result_that_the_bucket_does_not_take_is_an_error_and_the_lease_is_held(bucket, queue):
    queue.enqueue([job()])
    lease = queue.claim("w", ANY)
    FaultyBucket.fail(FOR_EVER)
    with pytest.raises(StoreError):
        queue.complete(lease, outcome(LARGE))
    FaultyBucket.fail(0)
    assert queue.complete(lease, outcome(LARGE))


def test_a_step_while_the_bucket_is_away_is_nobodys_fault_but_ours(bucket, tmp_path):
    task = fakes.fake_task(tmp_path / "task")
    with contextlib.closing(Environment(tmp_path / "tasks", fakes.FakeSandbox(), bucket)) as environment:
        environment._opened[task.key] = task
        state = environment.initial_state(task.key)
        action = fakes.Action("Execute Script", {"script_name": "train.py"}, None).render()
        step = Job("run", 0, state, 0, action)
        for working in range(12):  # The bucket fails at every call of a step in turn.
            calls = counting(working)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FaultyBucket, "_answer", calls)
                found = environment.take(step)
            if not calls.failed:
                break
            assert found.kind is OutcomeKind.INFRASTRUCTURE_ERROR
            assert "503" in found.reason
        assert found.kind is OutcomeKind.NO_EDIT
        assert working > 3
        assert Snapshots(bucket).reachable(found.snapshot)


def counting(working):
    """Fails from the call on that comes after so many that work."""
    from faulty_bucket import HttpError

    def answer(self):
        answer.calls += 1
        if answer.calls > working:
            answer.failed = True
            raise HttpError("503, Service Unavailable")

    answer.calls, answer.failed = 0, False
    return answer
