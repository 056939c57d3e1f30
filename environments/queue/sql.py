"""The reward queue in SQL, once for both engines.

Every operation is one short transaction that may be repeated: a connection that breaks after the commit and before its
acknowledgement does no harm. The lease protocol itself is in `environments.queue.leases`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Row, Select, Update, delete, func, select, true, update

from environments.files.blobs import Store, StoreError
from environments.protocol import (
    Job,
    Outcome,
    OutcomeKind,
    ProtocolError,
    Requirements,
    Scale,
    canonical_json,
    digest,
)
from environments.queue import inspection, schema
from environments.queue.base import Capabilities, Changes, Lease, QueueError, WorkerReport
from environments.queue.engine import Engine, safe_url
from environments.queue.leases import START, LeaseStatements, RetryPolicy
from environments.queue.payloads import Payloads
from environments.queue.schema import CANCELLED, DEAD, DONE, QUEUED, jobs

EXECUTION_OVERHEAD_SECONDS = 300.0
"""Restoring, starting the sandbox and grading: what an execution may take beyond its wall limit."""
REAP_SECONDS = 0.5
"""How often one process looks for leases that ran out while there is other work."""
START_SECONDS = 5.0
"""How often one process looks for work from the first place on while there is other work: what was enqueued by a
transaction that took long lies before the last claim."""
LOOK_REST = 4.0
"""Who waits rests so many times as long as a look takes, so that looking is a fifth of his time however much is out."""
_CHUNK = 500
"""Ids in one statement."""
_PURGED = 10_000
"""Jobs deleted in one transaction."""
_ADDED, _FINISHED = "mlagent_added", "mlagent_finished"


class SqlQueue:
    """`environments.queue.base.RewardQueue` on one engine."""

    def __init__(
        self, engine: Engine, store: Store | None = None, create: bool = True, retries: RetryPolicy | None = None
    ) -> None:
        self._engine = engine
        self._payloads = Payloads(store)
        self._retries = retries or RetryPolicy()
        self._leases = LeaseStatements(engine.now, self._retries, engine.among)
        self._reaped_at = -REAP_SECONDS
        self._last_claim, self._started_at = START, -START_SECONDS
        self._known_requirements: tuple[tuple[str, Requirements], ...] = ()
        self._transact = engine.transact
        where = safe_url(engine.url)
        # Locks only where there is something to make: a thousand workers may start at once.
        if not self._transact(schema.exists, write=False):
            if not create:
                raise QueueError(f"no queue at {where}: start the trainer first, or check the URL")
            self._transact(self._create)
        self._transact(lambda connection: schema.check(connection, where), write=False)

    # -- trainer --

    def enqueue(self, new: Iterable[Job]) -> int:
        new = list({job.id: job for job in new}.values())
        texts = self._payloads.pack_all([job.to_dict() for job in new])
        wanted = {digest(body): canonical_json(body) for body in (job.requirements.to_dict() for job in new)}

        def add(connection: Connection) -> int:
            now = self._engine.now
            rows = [
                {
                    "id": job.id,
                    "run": job.run,
                    "policy_version": job.policy_version,
                    "requirements": digest(job.requirements.to_dict()),
                    "payload": text,
                    "execution_seconds": job.limits.wall_seconds + EXECUTION_OVERHEAD_SECONDS,
                }
                for job, text in zip(new, texts, strict=True)
            ]
            connection.execute(
                self._engine.insert(schema.requirements).on_conflict_do_nothing(),
                [{"id": identity, "body": body} for identity, body in wanted.items()],
            )
            statement = self._engine.insert(jobs).values(
                state=QUEUED, enqueued_at=now, ready_at=now, max_attempts=self._retries.max_attempts
            )
            statement = statement.on_conflict_do_update(
                index_elements=[jobs.c.id],
                set_={"state": QUEUED, "ready_at": now, "finished_at": None, "reason": None},
                where=(jobs.c.state == CANCELLED) & jobs.c.consumed_step.is_(None),
            )
            added = len(connection.scalars(statement.returning(jobs.c.seq), rows).all())
            self._engine.notify(connection, _ADDED)
            return added

        return self._transact(add) if new else 0

    def outcomes(self, job_ids: Collection[str]) -> dict[str, Outcome]:
        columns = (jobs.c.id, jobs.c.state, jobs.c.reason, jobs.c.outcome, jobs.c.payload)

        def read(connection: Connection) -> list[Row]:
            return [
                row
                for chunk in _chunks(job_ids)
                for row in connection.execute(select(*columns).where(jobs.c.id.in_(chunk), schema.is_finished))
            ]

        rows = self._transact(read, write=False)
        done = [row for row in rows if row.state == DONE]
        try:
            accepted = self._payloads.unpack_all([row.outcome for row in done])
        except StoreError as error:
            raise QueueError(
                f"an accepted outcome cannot be read ({error}); repair the store, or have the jobs done again: "
                "`python -m environments.queue retry URL --job ID`"
            ) from error
        found = {row.id: Outcome.from_dict(data) for row, data in zip(done, accepted, strict=True)}
        return found | {row.id: self._infrastructure_error(row) for row in rows if row.state != DONE}

    def wait(self, job_ids: Collection[str], timeout_seconds: float, count: int | None = None) -> dict[str, Outcome]:
        pending, found = set(job_ids), {}
        wanted = len(pending) if count is None else min(count, len(pending))

        def collect() -> bool:
            found.update(self.outcomes(pending))
            pending.difference_update(found)
            return len(found) >= wanted

        self._until(collect, timeout_seconds)
        return found

    def consume(self, run: str, step: int, job_ids: Collection[str]) -> None:
        def mark(connection: Connection) -> None:
            for chunk in _chunks(job_ids):
                usable = (
                    jobs.c.id.in_(chunk),
                    jobs.c.run == run,
                    schema.is_finished,
                    jobs.c.consumed_step.is_(None) | (jobs.c.consumed_step == step),
                )
                statement = update(jobs).where(*usable).values(consumed_step=step).returning(jobs.c.id)
                refused = sorted(set(chunk) - set(connection.scalars(statement)))
                if refused:
                    raise QueueError(self._why_not_consumed(connection, run, step, refused))

        self._transact(mark)

    def consumed(self, run: str) -> dict[str, int]:
        query = select(jobs.c.id, jobs.c.consumed_step).where(jobs.c.run == run, schema.consumed)
        return self._read_pairs(query)

    def rollback(self, run: str, step: int) -> int:
        statement = (
            update(jobs)
            .where(jobs.c.run == run, schema.consumed, jobs.c.consumed_step > step)
            .values(consumed_step=None)
        )
        return self._transact(lambda connection: connection.execute(statement).rowcount, single=True)

    def cancel(self, run: str, older_than_version: int | None = None) -> int:
        reason, where = "cancelled", [jobs.c.run == run, schema.queued]
        if older_than_version is not None:
            reason = f"cancelled: sampled by a policy older than version {older_than_version}"
            where.append(jobs.c.policy_version < older_than_version)

        def mark(connection: Connection) -> int:
            values = {"state": CANCELLED, "finished_at": self._engine.now, "reason": reason}
            count = connection.execute(update(jobs).where(*where).values(values)).rowcount
            self._engine.notify(connection, _FINISHED)
            return count

        return self._transact(mark)

    def outstanding(self, run: str) -> dict[int, int]:
        version = jobs.c.policy_version
        query = select(version, func.count()).where(jobs.c.run == run, schema.outstanding).group_by(version)
        return self._read_pairs(query)

    def check_alive(self, run: str, silence_seconds: float) -> None:
        trouble = self._transact(
            lambda connection: inspection.silence(connection, self._engine.now, run, silence_seconds), write=False
        )
        if trouble:
            raise QueueError(f"queue {safe_url(self._engine.url)}: {trouble}")

    # -- worker --

    def claim(self, worker: str, capabilities: Capabilities, lease_seconds: float = 60.0) -> Lease | None:
        while True:
            row = self._lease_oldest(worker, capabilities, lease_seconds)
            if row is None:
                return None
            try:
                job = Job.from_dict(self._payloads.unpack(row.payload))
            except (OSError, ProtocolError) as error:
                failure = f"the job cannot be read: {error}"
                self._fail({"job_id": row.id, "held_token": row.token, "failure": failure})
                continue
            return Lease(job=job, token=row.token, attempt=row.attempts, worker=worker, seconds=lease_seconds)

    def heartbeat(self, lease: Lease) -> bool:
        claim = {**_claim(lease), "lease_seconds": lease.seconds}
        return (
            self._transact(lambda connection: connection.execute(self._leases.renew, claim).rowcount, single=True) == 1
        )

    def complete(self, lease: Lease, outcome: Outcome) -> bool:
        if outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR:
            raise QueueError(f"an infrastructure error is no result ({outcome.reason}): hand it to `fail`")
        claim, text = _claim(lease), self._payloads.pack(outcome.to_dict())
        result = {**claim, "result": text, "result_kind": outcome.kind.value, "result_seconds": outcome.seconds}

        if self._change(self._leases.accept, result):
            return True

        def refuse(connection: Connection) -> bool:
            # The acknowledgement of an earlier try may have been lost: its result is the accepted one.
            if connection.scalar(self._leases.accepted, claim) is not None:
                return True
            connection.execute(self._leases.count_late, claim)
            return False

        return self._transact(refuse)

    def fail(self, lease: Lease, reason: str) -> None:
        self._fail({**_claim(lease), "failure": reason})

    def watch(self) -> AbstractContextManager[Changes]:
        return self._engine.watch(_ADDED)

    def report(self, worker: str, report: WorkerReport) -> None:
        values = {
            **{field.name: getattr(report, field.name) for field in dataclasses.fields(report)},
            "capabilities": canonical_json(report.capabilities.to_dict()),
        }

        def upsert(connection: Connection) -> None:
            now = self._engine.now
            statement = self._engine.insert(schema.workers).values(name=worker, started_at=now, last_seen=now, **values)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[schema.workers.c.name], set_={"last_seen": now, **values}
                )
            )

        self._transact(upsert, single=True)

    # -- people --

    def retry(self, run: str | None = None, job_ids: Collection[str] = ()) -> int:
        where = [schema.is_finished, ~schema.consumed] if job_ids else [schema.in_state(DEAD), ~schema.consumed]
        if run is not None:
            where.append(jobs.c.run == run)

        def requeue(connection: Connection) -> int:
            values = {"state": QUEUED, "attempts": 0, "ready_at": self._engine.now, "finished_at": None, "kind": None}
            values |= {"outcome": None, "seconds": None}
            chosen = [jobs.c.id.in_(chunk) for chunk in _chunks(job_ids)] or [true()]
            statements = [update(jobs).where(*where, condition).values(values) for condition in chosen]
            count = sum(connection.execute(statement).rowcount for statement in statements)
            self._engine.notify(connection, _ADDED)
            return count

        return self._transact(requeue)

    def purge(self, older_than_seconds: float, run: str | None = None) -> int:
        before = self._engine.now - older_than_seconds
        where = [schema.finished, jobs.c.finished_at < before]
        if run is not None:
            where.append(jobs.c.run == run)
        some = select(jobs.c.seq).where(*where).limit(_PURGED)
        statements = (
            delete(schema.workers).where(schema.workers.c.last_seen < before),
            delete(jobs).where(self._engine.among(jobs.c.seq, some)),
        )

        def remove() -> int:
            """Delete some; every transaction is short, however much there is."""
            return self._transact(lambda connection: [connection.execute(each).rowcount for each in statements])[1]

        return sum(iter(remove, 0))

    def status(self) -> Mapping[str, Any]:
        found = self._transact(lambda connection: inspection.status(connection, self._engine.now), write=False)
        return {"queue": safe_url(self._engine.url), "schema_version": schema.SCHEMA_VERSION, **found}

    def close(self) -> None:
        self._engine.close()

    # -- inside --

    def _create(self, connection: Connection) -> None:
        self._engine.exclude_others(connection)
        schema.create(connection)

    def _lease_oldest(self, worker: str, capabilities: Capabilities, lease_seconds: float) -> Row | None:
        fresh = time.monotonic() - self._reaped_at >= REAP_SECONDS
        if fresh:
            self._reap()
            self._learn_requirements()
        row = self._lease_ready(worker, capabilities, lease_seconds)
        # Both, whatever the first finds: there may be work of a kind that is new.
        if row is None and not fresh and any([self._reap(), self._learn_requirements()]):
            row = self._lease_ready(worker, capabilities, lease_seconds)
        return row

    def _lease_ready(self, worker: str, capabilities: Capabilities, lease_seconds: float) -> Row | None:
        known = self._known_requirements
        served = tuple(identity for identity, asked in known if not capabilities.lacking(asked))
        if not served:
            return None
        now = time.monotonic()
        begin = self._last_claim if now - self._started_at < START_SECONDS else START
        if begin is START:
            self._started_at = now
        statement = self._leases.claim(served)
        parameters = {"claimed_by": worker, "lease_seconds": lease_seconds}
        parameters |= {f"from_{name}": value for name, value in begin.items()}
        row = self._transact(lambda connection: connection.execute(statement, parameters).one_or_none(), single=True)
        self._last_claim = START if row is None else {name: getattr(row, name) for name in START}
        if row is None and begin is not START:
            return self._lease_ready(worker, capabilities, lease_seconds)
        return row

    def _learn_requirements(self) -> bool:
        """Read what jobs of this queue require; whether that changed. Asked rarely: a run has one or a few."""
        rows = self._transact(lambda connection: connection.execute(_REQUIREMENTS).all(), write=False, single=True)
        known = tuple((row.id, _requirements(row.body)) for row in rows)
        changed, self._known_requirements = known != self._known_requirements, known
        return changed

    def _reap(self) -> int:
        """Take back the jobs whose leases ran out; returns how many."""
        self._reaped_at = time.monotonic()
        return self._change(self._leases.reap, {})

    def _fail(self, failure: dict[str, Any]) -> None:
        self._change(self._leases.fail, failure)

    def _change(self, statement: Update, parameters: dict[str, Any]) -> int:
        """Execute a statement that may finish jobs; returns how many rows it changed."""
        changed = self._transact(lambda connection: connection.execute(statement, parameters).rowcount, single=True)
        if changed:
            self._engine.announce(_FINISHED)
        return changed

    def _read_pairs(self, query: Select) -> dict[Any, Any]:
        return self._transact(lambda connection: dict(map(tuple, connection.execute(query))), write=False, single=True)

    def _until(self, satisfied: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait until `satisfied()`, which is asked whenever a job finishes; False at the time-out."""
        end, look = time.monotonic() + timeout_seconds, 0.0
        if satisfied():
            return True
        with self._engine.watch(_FINISHED) as changes:
            while True:
                # Asking for ten thousand results whenever one comes would keep the database busy with nothing else.
                time.sleep(max(0.0, min(LOOK_REST * look, REAP_SECONDS, end - time.monotonic())))
                # With no worker left to claim, nobody else notices that the last leases ran out.
                if time.monotonic() - self._reaped_at >= REAP_SECONDS:
                    self._reap()
                started = time.monotonic()
                if satisfied():
                    return True
                look = time.monotonic() - started
                remaining = end - time.monotonic()
                if remaining <= 0:
                    return False
                changes.wait(min(remaining, REAP_SECONDS))

    def _infrastructure_error(self, row: Row) -> Outcome:
        """Outcome of a dead or cancelled job: masked out of the loss, the state as it was."""
        reason = row.reason or row.state
        try:
            state = Job.from_dict(self._payloads.unpack(row.payload)).state
        except (OSError, ProtocolError):  # What killed the job may be that it cannot be read; the run goes on.
            return _masked("", "", 0.0, reason)
        return _masked(state.snapshot, state.script, state.metric, reason)

    def _why_not_consumed(self, connection: Connection, run: str, step: int, refused: Sequence[str]) -> str:
        row = connection.execute(select(jobs).where(jobs.c.id == refused[0])).one_or_none()
        if row is None:
            why = "it was never enqueued"
        elif row.run != run:
            why = f"it belongs to run {row.run!r}"
        elif row.consumed_step is not None:
            why = f"step {row.consumed_step} used it; after a resume, call `rollback` with the checkpoint's step first"
        else:
            why = f"it is {row.state}; wait for its outcome first"
        return f"step {step} of run {run!r} cannot consume {len(refused)} results, job {refused[0]} for one: {why}"


_REQUIREMENTS = select(schema.requirements.c.id, schema.requirements.c.body).order_by(schema.requirements.c.id)


def _claim(lease: Lease) -> dict[str, Any]:
    return {"job_id": lease.job.id, "held_token": lease.token}


@functools.lru_cache(maxsize=256)
def _requirements(body: str) -> Requirements:
    return Requirements.from_dict(json.loads(body))


def _masked(snapshot: str, script: str, metric: float, reason: str) -> Outcome:
    return Outcome(
        kind=OutcomeKind.INFRASTRUCTURE_ERROR,
        observation="",
        snapshot=snapshot,
        script=script,
        metric_before=metric,
        metric_after=None,
        scale=Scale(m_init=metric, m_best=metric, higher_is_better=True),
        reason=reason,
    )


def _chunks(job_ids: Collection[str]) -> Iterator[list[str]]:
    # Sorted and without repetitions: two transactions that lock the same rows lock them in the same order.
    ordered = sorted(set(job_ids))
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]
