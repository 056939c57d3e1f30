"""Jobs out and outcomes back: one accepted result a job, whoever dies, stops or comes late. Both engines."""

import dataclasses

import pytest
from queue_cases import job, outcome

from environments.files.blobs import open_store
from environments.protocol import Limits, OutcomeKind, Requirements, canonical_json
from environments.queue import QueueError, RetryPolicy, schema
from environments.queue.base import Capabilities, WorkerReport
from environments.queue.sql import EXECUTION_OVERHEAD_SECONDS

ANY = Capabilities()


@pytest.fixture
def queue(connect, clock):
    return connect(clock=clock, retries=RetryPolicy(max_attempts=3, backoff_seconds=4.0))


def test_a_job_comes_back_as_it_went_in_and_so_does_its_outcome(queue):
    sent = job(3, truncated=True, limits=Limits(cpu_seconds=3.5), requirements=Requirements(guarantees=()))
    assert queue.enqueue([sent]) == 1
    lease = queue.claim("w", ANY)
    assert (lease.job, lease.attempt, lease.worker) == (sent, 1, "w")
    result = outcome("café \U0001f600", action_input={"a": [1, None]}, progress=("parsed",))
    assert queue.complete(lease, result)
    assert queue.outcomes([sent.id]) == {sent.id: result}


def test_enqueueing_twice_is_harmless(queue):
    jobs = [job(i) for i in range(5)]
    assert queue.enqueue(jobs[:3]) == 3
    assert queue.enqueue([*jobs, jobs[0]]) == 2
    leases = [queue.claim("w", ANY) for _ in range(6)]
    assert [lease and lease.job for lease in leases] == [*jobs, None]
    assert queue.complete(leases[0], outcome("first"))
    assert queue.enqueue(jobs) == 0
    assert queue.outcomes([jobs[0].id])[jobs[0].id].observation == "first"


def test_nothing_to_enqueue_and_nothing_to_claim(queue):
    assert queue.enqueue([]) == 0
    assert queue.claim("w", ANY) is None
    assert queue.outcomes([]) == {}


def test_a_leased_job_is_not_given_out_again_until_its_lease_runs_out(queue, clock):
    queue.enqueue([job()])
    lease = queue.claim("w1", ANY, lease_seconds=60)
    clock.now += 59
    assert queue.claim("w2", ANY) is None
    assert queue.heartbeat([lease]) == []
    clock.now += 59
    assert queue.claim("w2", ANY) is None
    clock.now += 2
    assert queue.claim("w2", ANY) is None  # Taken back, and in its backoff.
    clock.now += 4
    assert queue.claim("w2", ANY).token > lease.token


def test_whoever_lost_the_lease_is_fenced(queue, clock):
    queue.enqueue([job()])
    slow = queue.claim("slow", ANY, lease_seconds=10)
    clock.now += 11
    assert queue.heartbeat([slow]) == [slow]
    assert queue.claim("quick", ANY) is None
    clock.now += 5
    quick = queue.claim("quick", ANY, lease_seconds=10)
    assert not queue.complete(slow, outcome("late"))
    queue.fail(slow, "late too")
    assert queue.heartbeat([quick]) == []
    assert queue.complete(quick, outcome("in time"))
    assert not queue.complete(slow, outcome("very late"))
    assert queue.outcomes([slow.job.id])[slow.job.id].observation == "in time"
    assert queue.status()["late_results"] == 2


def test_a_result_after_the_lease_is_late_even_where_nobody_took_the_job(queue, clock):
    queue.enqueue([job()])
    lease = queue.claim("w", ANY, lease_seconds=10)
    clock.now += 10
    assert not queue.complete(lease, outcome())
    assert queue.outcomes([lease.job.id]) == {}


def test_handing_in_again_after_a_lost_acknowledgement_is_accepted_and_changes_nothing(queue):
    queue.enqueue([job()])
    lease = queue.claim("w", ANY)
    assert queue.complete(lease, outcome("once"))
    assert queue.complete(lease, outcome("twice"))
    assert queue.outcomes([lease.job.id])[lease.job.id].observation == "once"


def test_no_heartbeat_renews_a_lease_beyond_the_jobs_deadline(queue, clock):
    queue.enqueue([job(limits=Limits(wall_seconds=100))])
    lease = queue.claim("hung", ANY, lease_seconds=60)
    end = clock.now + 100 + EXECUTION_OVERHEAD_SECONDS
    while clock.now + 50 < end:
        clock.now += 50
        assert queue.heartbeat([lease]) == []
    clock.now = end
    assert queue.heartbeat([lease]) == [lease]


def test_failures_are_retried_with_growing_backoff_then_dead_and_masked(queue, clock):
    sent = job()
    queue.enqueue([sent])
    for attempt, backoff in ((1, 4), (2, 8)):
        lease = queue.claim("w", ANY)
        assert lease.attempt == attempt
        queue.fail(lease, "the image is missing")
        clock.now += backoff - 0.5
        assert queue.claim("w", ANY) is None
        clock.now += 1
    queue.fail(queue.claim("w", ANY), "the disk is full")
    clock.now += 1000
    assert queue.claim("w", ANY) is None
    dead = queue.outcomes([sent.id])[sent.id]
    assert dead.kind is OutcomeKind.INFRASTRUCTURE_ERROR
    assert dead.reward is None
    assert (dead.snapshot, dead.script, dead.metric) == ("snap", "print()", 0.5)
    assert "the disk is full" in dead.reason
    (letter,) = queue.status()["dead_letters"]
    assert (letter["job"], letter["attempts"], letter["reason"]) == (sent.id, 3, "the disk is full")


def test_a_job_that_kills_its_workers_is_dead_after_as_many_claims_and_the_trainer_sees_it(queue, clock):
    poison, healthy = job(0), job(1)
    queue.enqueue([poison])
    for _ in range(3):
        clock.now += 100
        assert queue.claim("unable", Capabilities(cores=0)) is None  # Takes back what ran out, all the same.
        clock.now += 100
        assert queue.claim("victim", ANY, lease_seconds=5).job == poison
    clock.now += 100
    # Nobody claims any more: waiting itself finds that the last lease ran out.
    assert queue.wait([poison.id], timeout_seconds=5)[poison.id].kind is OutcomeKind.INFRASTRUCTURE_ERROR
    assert "victim" in queue.status()["dead_letters"][0]["reason"]
    queue.enqueue([healthy])
    assert queue.complete(queue.claim("w", ANY), outcome())


def test_leases_that_run_out_set_a_job_aside_before_its_attempts_are_spent(connect, clock):
    queue = connect(clock=clock, retries=RetryPolicy(max_attempts=9, max_lapses=2))
    sweeper = connect(clock=clock)  # A worker's own policy does not count: the limits are those of who queued the job.
    queue.enqueue([job()])
    for lapses in range(2):
        lease = queue.claim("victim", ANY, lease_seconds=5)
        assert lease.lapses == lapses
        clock.now += 100
        assert sweeper.claim("w", ANY) is None
        clock.now += 100
    dead = queue.outcomes([job().id])[job().id]
    assert "2 leases of it ran out and it may kill its workers; the last: the lease of victim" in dead.reason
    assert queue.retry() == 1
    assert queue.claim("w", ANY).lapses == 0


def test_a_released_job_is_there_again_at_once_and_its_attempt_does_not_count(queue, clock):
    queue.enqueue([job()])
    for _ in range(10):
        lease = queue.claim("drains", ANY)
        assert lease.attempt == 1
        queue.release(lease)
    assert not queue.complete(lease, outcome())
    clock.now += 1
    late = queue.claim("slow", ANY, lease_seconds=1)
    clock.now += 2
    queue.release(late)
    assert queue.claim("w", ANY) is None, "a lease that ran out cannot be released"


def test_many_leases_are_renewed_together_and_those_lost_are_named(queue, clock):
    queue.enqueue([job(i) for i in range(4)])
    leases = [queue.claim("w", ANY, lease_seconds=10) for _ in range(3)]
    stale = dataclasses.replace(leases[2], token=0)
    queue.complete(leases[0], outcome())
    assert queue.heartbeat([*leases[:2], stale]) == [leases[0], stale]
    assert queue.heartbeat([]) == []
    clock.now += 11
    assert queue.heartbeat(leases) == leases


@pytest.mark.parametrize(
    "payload",
    [
        '{"broken',
        "null",
        "[]",
        "5",
        "{}",
        "[" * 5000,
        '{"version":1,"run":"r","policy_version":0}',
        '{"version":1,"run":"r","policy_version":0,"state":[],"sample":0,"action":"x"}',
    ],
)
def test_what_is_queued_and_is_no_job_is_set_aside_at_once_and_everyone_goes_on(queue, payload):
    queue.enqueue([job(0), job(1), job(2)])
    rewrite(queue, job(0), payload=payload)
    rewrite(queue, job(2), payload=canonical_json(job(3).to_dict()))
    assert queue.claim("w", ANY).job == job(1)
    assert queue.claim("w", ANY) is None
    for broken in (job(0), job(2)):
        found = queue.outcomes([broken.id])[broken.id]
        assert found.kind is OutcomeKind.INFRASTRUCTURE_ERROR
        assert found.reason.startswith("set aside, since what was queued is not this job: ")


@pytest.mark.parametrize("field, value", [("action", 5), ("truncated", "no"), ("seed", 1.5), ("limits", {"cpu": 1})])
def test_a_job_with_a_field_of_another_kind_is_set_aside_with_its_name(queue, field, value):
    queue.enqueue([job()])
    rewrite(queue, job(), payload=canonical_json({**job().to_dict(), field: value}))
    assert queue.claim("w", ANY) is None
    assert field in queue.outcomes([job().id])[job().id].reason.lower()


def test_an_outcome_that_is_none_is_masked_with_its_reason(queue):
    queue.enqueue([job()])
    assert queue.complete(queue.claim("w", ANY), outcome())
    rewrite(queue, job(), outcome="null")
    found = queue.outcomes([job().id])[job().id]
    assert (found.kind, found.snapshot) == (OutcomeKind.INFRASTRUCTURE_ERROR, "snap")
    assert found.reason.startswith("it has no outcome: ")


def test_requirements_of_another_version_are_nobodys_here_and_are_told(queue, clock):
    queue.enqueue([job(0, requirements=Requirements(cores=1))])
    statement = schema.requirements.update().values(body='{"lasers": 3}')
    queue._transact(lambda connection: connection.execute(statement))
    assert queue.claim("w", ANY) is None
    queue.report("w", WorkerReport("host", 1, "1", 1, ANY))
    clock.now += 10
    queue.report("w", WorkerReport("host", 1, "1", 1, ANY))
    with pytest.raises(QueueError, match="no field 'lasers'"):
        queue.check_alive("run", 10)


def rewrite(queue, job, **values):
    statement = schema.jobs.update().where(schema.jobs.c.id == job.id).values(values)
    queue._transact(lambda connection: connection.execute(statement))


def test_an_infrastructure_error_is_not_accepted_as_a_result(queue):
    queue.enqueue([job()])
    lease = queue.claim("w", ANY)
    with pytest.raises(QueueError, match="fail"):
        queue.complete(lease, outcome(kind=OutcomeKind.INFRASTRUCTURE_ERROR, reward=None))


@pytest.mark.parametrize(
    "asked, offered",
    [
        (Requirements(cores=4), Capabilities(cores=3)),
        (Requirements(memory_mb=4096), Capabilities(memory_mb=4095)),
        (Requirements(gpus=1), Capabilities()),
        (Requirements(image="sha256:1"), Capabilities(image="sha256:2")),
        (Requirements(guarantees=("network", "disk")), Capabilities(guarantees=frozenset({"network"}))),
    ],
)
def test_a_worker_takes_only_what_it_can_serve(queue, asked, offered):
    queue.enqueue([job(0, requirements=asked), job(1)])
    assert queue.claim("w", offered).job.sample == 1
    assert queue.claim("w", offered) is None
    able = Capabilities(8, 8192, 2, "sha256:1", frozenset({"network", "disk", "memory"}))
    assert queue.claim("able", able).job.sample == 0


def test_the_oldest_job_goes_first_over_all_requirements(queue, clock):
    requirements = [Requirements(cores=cores) for cores in (1, 2, 1, 3)]
    for sample, required in enumerate(requirements):
        queue.enqueue([job(sample, requirements=required)])
        clock.now += 1
    assert [queue.claim("w", Capabilities(cores=4)).job.sample for _ in requirements] == [0, 1, 2, 3]


def test_work_of_a_new_kind_is_found_at_the_next_claim(connect, queue, clock):
    able, trainer = Capabilities(cores=4), connect(clock=clock)
    trainer.enqueue([job(0)])
    assert queue.claim("w", able).job.sample == 0
    trainer.enqueue([job(1, requirements=Requirements(cores=4))])
    assert queue.claim("w", able).job.sample == 1


def test_large_payloads_go_to_the_store_and_an_unreadable_one_kills_only_its_job(connect, clock, tmp_path):
    store = open_store(tmp_path / "store")
    queue = connect(store=store, clock=clock, retries=RetryPolicy(max_attempts=2, backoff_seconds=1))
    big, small = job(0, action="x" * 50_000), job(1)
    queue.enqueue([big, small, job(2, action="y" * 50_000)])
    lease = queue.claim("w", ANY)
    assert lease.job == big
    assert queue.complete(lease, outcome("z" * 50_000))
    assert queue.outcomes([big.id])[big.id].observation == "z" * 50_000
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert queue.claim("w", ANY).job == small
    assert queue.claim("w", ANY) is None
    clock.now += 2
    assert queue.claim("w", ANY) is None
    (letter,) = queue.status()["dead_letters"]
    assert "cannot be read" in letter["reason"]
    masked = queue.outcomes([letter["job"]])[letter["job"]]
    assert masked.kind is OutcomeKind.INFRASTRUCTURE_ERROR
    with pytest.raises(QueueError, match="retry"):
        queue.outcomes([big.id])


def test_a_job_of_another_protocol_version_is_a_failure_not_a_crash(connect, queue, clock):
    sent = job()
    queue.enqueue([dataclasses.replace(sent, version=99)])
    assert queue.claim("w", ANY) is None
    clock.now += 1000
    assert queue.claim("w", ANY) is None
    clock.now += 1000
    assert queue.claim("w", ANY) is None
    assert "version" in queue.outcomes([sent.id])[sent.id].reason
