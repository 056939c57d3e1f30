"""Random histories of the lease protocol, against a model of a few lines. Both engines."""

import dataclasses

import pytest
import sqlalchemy
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from queue_cases import Clock, job, outcome

from environments.protocol import OutcomeKind
from environments.queue import QueueError, RetryPolicy, open_queue, sql
from environments.queue.base import Capabilities

ATTEMPTS, LAPSES, BACKOFF, LEASE = 3, 2, 5.0, 20.0
SAMPLES = st.integers(0, 2)
PAUSES = st.sampled_from([0.0, LEASE - 1.0, LEASE])


@dataclasses.dataclass
class Row:
    """What the model knows of a job."""

    order: int
    ready_at: float
    state: str = "queued"
    attempts: int = 0
    lapses: int = 0
    token: int = 0
    lease_until: float = 0.0
    note: str = ""
    step: int | None = None


class LeaseProtocol(RuleBasedStateMachine):
    """`queue` is real; `rows` is what it should hold."""

    url: str
    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.clock, self.rows, self.notes = Clock(), {}, 0
        retries = RetryPolicy(max_attempts=ATTEMPTS, backoff_seconds=BACKOFF, max_lapses=LAPSES)
        self.queue = open_queue(self.url, clock=self.clock, retries=retries)

    def teardown(self):
        self.queue.cancel("run")
        self.queue._transact(lambda connection: connection.execute(sqlalchemy.text("DELETE FROM mlagent_jobs")))
        self.queue.close()

    @initialize()
    def begin_with_work(self):
        self.enqueue([0, 1])

    def end_attempt(self, row, lapsed=False):
        row.lapses += lapsed
        dead = row.attempts >= ATTEMPTS or (lapsed and row.lapses >= LAPSES)
        row.state = "dead" if dead else "queued"
        row.ready_at = self.clock.now + BACKOFF * 2 ** (row.attempts - 1)

    def holds(self, lease):
        row = self.rows[lease.job.sample]
        return row.state == "leased" and row.token == lease.token and self.clock.now < row.lease_until

    @rule(samples=st.lists(SAMPLES, max_size=3))
    def enqueue(self, samples):
        added = 0
        for sample in dict.fromkeys(samples):
            row = self.rows.get(sample)
            if row is None:
                self.rows[sample] = Row(len(self.rows), self.clock.now)
                added += 1
            elif row.state == "cancelled" and row.step is None:
                row.state, row.ready_at = "queued", self.clock.now
                added += 1
        assert self.queue.enqueue([job(sample) for sample in samples]) == added

    @rule(target=leases, after=PAUSES)
    def claim(self, after):
        self.clock.now += after
        for row in self.rows.values():
            if row.state == "leased" and row.lease_until <= self.clock.now:
                self.end_attempt(row, lapsed=True)
        ready = {
            sample: row for sample, row in self.rows.items() if row.state == "queued" and row.ready_at <= self.clock.now
        }
        lease = self.queue.claim("w", Capabilities(), LEASE)
        if not ready:
            assert lease is None
            return multiple()
        sample = min(ready, key=lambda sample: (ready[sample].ready_at, ready[sample].order))
        row = ready[sample]
        row.state, row.attempts, row.token = "leased", row.attempts + 1, row.token + 1
        row.lease_until = self.clock.now + LEASE
        assert (lease.job.sample, lease.attempt, lease.token) == (sample, row.attempts, row.token)
        assert lease.lapses == row.lapses
        return lease

    @rule(lease=leases, after=PAUSES)
    def heartbeat(self, lease, after):
        self.clock.now += after
        held = self.holds(lease)
        if held:
            self.rows[lease.job.sample].lease_until = self.clock.now + LEASE
        assert self.queue.heartbeat([lease]) == ([] if held else [lease])

    @rule(lease=leases, after=PAUSES)
    def complete(self, lease, after):
        self.clock.now += after
        row, held = self.rows[lease.job.sample], self.holds(lease)
        again = row.state == "done" and row.token == lease.token
        self.notes += 1
        if held:
            row.state, row.note = "done", str(self.notes)
        assert self.queue.complete(lease, outcome(str(self.notes))) == (held or again)

    @rule(lease=consumes(leases), after=PAUSES)
    def fail(self, lease, after):
        self.clock.now += after
        if self.holds(lease):
            self.end_attempt(self.rows[lease.job.sample])
        self.queue.fail(lease, "broken")

    @rule(lease=consumes(leases), after=PAUSES)
    def release(self, lease, after):
        self.clock.now += after
        if self.holds(lease):
            row = self.rows[lease.job.sample]
            row.state, row.attempts, row.ready_at = "queued", row.attempts - 1, self.clock.now
        self.queue.release(lease)

    @rule(seconds=st.sampled_from([BACKOFF, LEASE, 3 * LEASE]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def cancel(self):
        queued = [row for row in self.rows.values() if row.state == "queued"]
        for row in queued:
            row.state = "cancelled"
        assert self.queue.cancel("run") == len(queued)

    @rule()
    def retry(self):
        dead = [row for row in self.rows.values() if row.state == "dead" and row.step is None]
        for row in dead:
            row.state, row.attempts, row.lapses, row.ready_at = "queued", 0, 0, self.clock.now
        assert self.queue.retry() == len(dead)

    @rule(samples=st.sets(SAMPLES), step=st.integers(1, 3))
    def consume(self, samples, step):
        rows = [self.rows.get(sample) for sample in samples]
        usable = all(row and row.state in ("done", "dead", "cancelled") and row.step in (None, step) for row in rows)
        try:
            self.queue.consume("run", step, [job(sample).id for sample in samples])
        except QueueError:
            assert not usable
        else:
            assert usable
            for row in rows:
                row.step = step

    @rule(step=st.integers(0, 3))
    def rollback(self, step):
        later = [row for row in self.rows.values() if row.step is not None and row.step > step]
        for row in later:
            row.step = None
        assert self.queue.rollback("run", step) == len(later)

    @invariant()
    def results_are_those_accepted(self):
        found = self.queue.outcomes([job(sample).id for sample in self.rows])
        expected = {
            job(sample).id: row for sample, row in self.rows.items() if row.state in ("done", "dead", "cancelled")
        }
        assert found.keys() == expected.keys()
        for identity, row in expected.items():
            if row.state == "done":
                assert found[identity].observation == row.note
            else:
                assert found[identity].kind is OutcomeKind.INFRASTRUCTURE_ERROR
        consumed = {job(sample).id: row.step for sample, row in self.rows.items() if row.step is not None}
        assert self.queue.consumed("run") == consumed


def check(url, monkeypatch, examples, steps):
    # Every claim takes back what ran out, so that the order is known.
    monkeypatch.setattr(sql, "SWEEP_SECONDS", 0.0)
    machine = type("LeaseProtocolHere", (LeaseProtocol,), {"url": url})
    health = [HealthCheck.too_slow]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=health
        ),
    )


def test_any_history_agrees_with_the_model(url, monkeypatch):
    check(url, monkeypatch, examples=20, steps=20)


@pytest.mark.slow
def test_any_long_history_agrees_with_the_model(url, monkeypatch):
    check(url, monkeypatch, examples=60, steps=50)
