"""The reward queue in SQL, for both engines.

Every operation is one short, repeatable transaction: a connection that breaks between commit and acknowledgement does
no harm. The lease protocol is in `environments.queue.leases`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Row, Update, delete, func, select, true, update

from environments.files.blobs import Store, StoreError
from environments.protocol import (
    Job,
    Outcome,
    OutcomeKind,
    ProtocolError,
    Requirements,
    Scale,
    VersionError,
    canonical_json,
    digest,
)
from environments.queue import inspection, schema
from environments.queue.base import Capabilities, Changes, Lease, QueueError, WorkerReport
from environments.queue.engine import Engine, safe_url
from environments.queue.leases import LeaseStatements, RetryPolicy
from environments.queue.payloads import Payloads
from environments.queue.schema import CANCELLED, DEAD, DONE, QUEUED, jobs

EXECUTION_OVERHEAD_SECONDS = 300.0
"""Time of an execution beyond its wall limit: restoring the workspace, starting the sandbox, grading."""
SWEEP_SECONDS = 0.5
"""Interval at which one process checks for expired leases and new requirements while it has other work."""
LOOK_SECONDS = (0.05, 0.5)
"""Minimum and maximum time between two polls for results; a poll asks for all awaited jobs."""
_CHUNK = 500
"""Maximum ids in one statement."""
_PURGED = 10_000
"""Maximum jobs deleted in one transaction."""


class SqlQueue:
    """`environments.queue.base.RewardQueue` on one engine."""

    def __init__(
        self, engine: Engine, store: Store | None = None, create: bool = True, retries: RetryPolicy | None = None
    ) -> None:
        self._engine = engine
        self._payloads = Payloads(store)
        self._retries = retries or RetryPolicy()
        self._leases = LeaseStatements(engine.now, self._retries)
        self._requirements: dict[str, str] = {}
        self._swept_at = -SWEEP_SECONDS
        self._transact = engine.transact
        where = safe_url(engine.url)
        # Lock only if tables are missing: a thousand workers may start at once.
        if not self._transact(schema.exists, write=False):
            if not create:
                raise QueueError(f"no queue at {where}: start the trainer first, or check the URL")
            self._transact(self._create)
        self._transact(lambda connection: schema.check(connection, where), write=False)
        self._transact(engine.start_clock)

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
            limits = {"max_attempts": self._retries.max_attempts, "max_lapses": self._retries.max_lapses}
            statement = self._engine.insert(jobs).values(state=QUEUED, enqueued_at=now, ready_at=now, **limits)
            statement = statement.on_conflict_do_update(
                index_elements=[jobs.c.id],
                set_={"state": QUEUED, "ready_at": now, "finished_at": None, "reason": None},
                where=(jobs.c.state == CANCELLED) & jobs.c.consumed_step.is_(None),
            )
            return len(connection.scalars(statement.returning(jobs.c.seq), rows).all())

        return self._transact(add) if new else 0

    def outcomes(self, job_ids: Collection[str]) -> dict[str, Outcome]:
        columns = (jobs.c.id, jobs.c.state, jobs.c.reason, jobs.c.outcome, jobs.c.payload)

        def read(connection: Connection) -> list[Row]:
            return [
                row
                for chunk in _chunks(job_ids)
                for row in connection.execute(select(*columns).where(jobs.c.id.in_(chunk), schema.finished))
            ]

        rows = self._transact(read, write=False)
        done = [row for row in rows if row.state == DONE]
        try:
            accepted = self._payloads.unpack_all([row.outcome for row in done], Outcome.from_dict)
        except StoreError as error:
            raise QueueError(
                f"an accepted outcome cannot be read ({error}); repair the store, or have the jobs done again: "
                "`python -m environments.queue retry URL --job ID`"
            ) from error
        found = {row.id: self._infrastructure_error(row, row.reason or row.state) for row in rows if row.state != DONE}
        for row, outcome in zip(done, accepted, strict=True):
            broken = isinstance(outcome, ProtocolError)
            found[row.id] = self._infrastructure_error(row, f"it has no outcome: {outcome}") if broken else outcome
        return found

    def wait(self, job_ids: Collection[str], timeout_seconds: float, count: int | None = None) -> dict[str, Outcome]:
        pending, found = set(job_ids), {}
        wanted = len(pending) if count is None else min(count, len(pending))
        end = time.monotonic() + timeout_seconds
        with self._engine.watch() as changes:
            while True:
                found.update(self.outcomes(pending))
                pending.difference_update(found)
                remaining = end - time.monotonic()
                if len(found) >= wanted or remaining <= 0:
                    return found
                shortest, longest = LOOK_SECONDS
                time.sleep(min(shortest, remaining))
                changes.wait(max(0.0, min(longest - shortest, remaining - shortest)))
                # With no worker left to claim, no other process detects that the last leases ran out.
                self._sweep()

    def consume(self, run: str, step: int, job_ids: Collection[str]) -> None:
        def mark(connection: Connection) -> None:
            for chunk in _chunks(job_ids):
                usable = (
                    jobs.c.id.in_(chunk),
                    jobs.c.run == run,
                    schema.finished,
                    jobs.c.consumed_step.is_(None) | (jobs.c.consumed_step == step),
                )
                statement = update(jobs).where(*usable).values(consumed_step=step).returning(jobs.c.id)
                refused = sorted(set(chunk) - set(connection.scalars(statement)))
                if refused:
                    raise QueueError(inspection.why_not_consumed(connection, run, step, refused))

        self._transact(mark)

    def consumed(self, run: str) -> dict[str, int]:
        query = select(jobs.c.id, jobs.c.consumed_step).where(jobs.c.run == run, schema.consumed)
        return self._transact(lambda connection: dict(map(tuple, connection.execute(query))), write=False)

    def rollback(self, run: str, step: int) -> int:
        statement = (
            update(jobs)
            .where(jobs.c.run == run, schema.consumed, jobs.c.consumed_step > step)
            .values(consumed_step=None)
        )
        return self._transact(lambda connection: connection.execute(statement).rowcount)

    def cancel(self, run: str, older_than_version: int | None = None) -> int:
        reason, where = "cancelled", [jobs.c.run == run, schema.queued]
        if older_than_version is not None:
            reason = f"cancelled: sampled by a policy older than version {older_than_version}"
            where.append(jobs.c.policy_version < older_than_version)

        values = {"state": CANCELLED, "finished_at": self._engine.now, "reason": reason}
        statement = update(jobs).where(*where).values(values)
        return self._transact(lambda connection: connection.execute(statement).rowcount)

    def failures(self, run: str) -> str:
        return self._transact(lambda connection: inspection.failures(connection, run), write=False)

    def check_alive(self, run: str, silence_seconds: float) -> None:
        trouble = self._transact(
            lambda connection: inspection.silence(connection, self._engine.now, run, silence_seconds), write=False
        )
        if trouble:
            raise QueueError(f"queue {safe_url(self._engine.url)}: {trouble}")

    # -- worker --

    def claim(self, worker: str, capabilities: Capabilities, lease_seconds: float = 60.0) -> Lease | None:
        swept = self._sweep(SWEEP_SECONDS)
        while True:
            served = [identity for identity, asked in self._requirements.items() if _serves(capabilities, asked)]
            values = {"served": served, "claimed_by": worker, "lease_seconds": lease_seconds}
            row = self._lease(values) if served else None
            if row is None:
                if swept:
                    return None
                swept = self._sweep()
                continue
            claim = {"job_id": row.id, "held_token": row.token}
            try:
                job = self._payloads.unpack(row.payload, Job.from_dict)
                if job.id != row.id:
                    raise ProtocolError(f"it is the job {job.id}")
            except (OSError, VersionError) as error:  # Another worker may be able to read it.
                self._execute(self._leases.fail, {**claim, "failure": f"the job cannot be read: {error}"})
            except ProtocolError as error:
                failure = f"set aside, since what was queued is not this job: {error}"
                self._execute(self._leases.set_aside, {**claim, "failure": failure})
            else:
                return Lease(job, row.token, row.attempts, worker, lease_seconds, row.lapses)

    def heartbeat(self, leases: Collection[Lease]) -> list[Lease]:
        if not leases:
            return []
        seconds = min(lease.seconds for lease in leases)
        values = {"claims": [(lease.job.id, lease.token) for lease in leases], "lease_seconds": seconds}
        held = set(self._transact(lambda connection: connection.scalars(self._leases.renew, values).all(), single=True))
        return [lease for lease in leases if lease.job.id not in held]

    def complete(self, lease: Lease, outcome: Outcome) -> bool:
        if outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR:
            raise QueueError(f"an infrastructure error is no result ({outcome.reason}): hand it to `fail`")
        claim, text = _claim(lease), self._payloads.pack(outcome.to_dict())
        result = {**claim, "result": text, "result_kind": outcome.kind.value, "result_seconds": outcome.seconds}

        if self._execute(self._leases.accept, result):
            return True

        def refuse(connection: Connection) -> bool:
            # The acknowledgement of an earlier try may have been lost: its result is the accepted one.
            if connection.scalar(self._leases.accepted, claim) is not None:
                return True
            connection.execute(self._leases.count_late, claim)
            return False

        return self._transact(refuse)

    def fail(self, lease: Lease, reason: str) -> None:
        self._execute(self._leases.fail, {**_claim(lease), "failure": reason})

    def release(self, lease: Lease) -> None:
        self._execute(self._leases.release, _claim(lease))

    def watch(self) -> AbstractContextManager[Changes]:
        return self._engine.watch()

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
        where = [schema.finished, ~schema.consumed] if job_ids else [schema.in_state(DEAD), ~schema.consumed]
        if run is not None:
            where.append(jobs.c.run == run)

        def requeue(connection: Connection) -> int:
            values = {"state": QUEUED, "attempts": 0, "lapses": 0, "ready_at": self._engine.now, "finished_at": None}
            values |= {"kind": None, "outcome": None, "seconds": None}
            chosen = [jobs.c.id.in_(chunk) for chunk in _chunks(job_ids)] or [true()]
            statements = [update(jobs).where(*where, condition).values(values) for condition in chosen]
            return sum(connection.execute(statement).rowcount for statement in statements)

        return self._transact(requeue)

    def purge(self, older_than_seconds: float, run: str | None = None) -> int:
        before = self._engine.now - older_than_seconds
        where = [schema.finished, jobs.c.finished_at < before]
        if run is not None:
            where.append(jobs.c.run == run)
        some = select(jobs.c.seq).where(*where).limit(_PURGED)
        statements = (
            delete(schema.workers).where(schema.workers.c.last_seen < before),
            delete(jobs).where(jobs.c.seq.in_(some)),
        )

        def remove() -> int:
            """Delete a batch, so that every transaction is short."""
            return self._transact(lambda connection: [connection.execute(each).rowcount for each in statements])[1]

        return sum(iter(remove, 0))

    def texts(self, steps: Mapping[str, int]) -> Iterator[str]:
        over = [(jobs.c.run == run) & (jobs.c.consumed_step < step) for run, step in steps.items()]
        in_use = [~func.coalesce(condition, False) for condition in over]
        last = 0
        while True:
            query = select(jobs.c.seq, jobs.c.payload, jobs.c.outcome).where(jobs.c.seq > last, *in_use)
            query = query.order_by(jobs.c.seq).limit(_CHUNK)
            rows = self._transact(lambda connection, query=query: connection.execute(query).all(), write=False)
            if not rows:
                return
            for row in rows:
                yield from filter(None, (row.payload, row.outcome))
            last = rows[-1].seq

    def status(self) -> Mapping[str, Any]:
        found = self._transact(lambda connection: inspection.status(connection, self._engine.now), write=False)
        return {"queue": safe_url(self._engine.url), "schema_version": schema.SCHEMA_VERSION, **found}

    def close(self) -> None:
        self._engine.close()

    # -- inside --

    def _create(self, connection: Connection) -> None:
        self._engine.exclude_others(connection)
        schema.create(connection)

    def _lease(self, values: dict[str, Any]) -> Row | None:
        return self._transact(
            lambda connection: connection.execute(self._leases.claim, values).one_or_none(), single=True
        )

    def _sweep(self, min_seconds: float = 0.0) -> bool:
        """Requeue jobs whose leases ran out, and read the requirements; return whether it was done.

        Nothing is done within `min_seconds` of the last time.
        """
        if time.monotonic() - self._swept_at < min_seconds:
            return False
        self._swept_at = time.monotonic()
        self._execute(self._leases.reap, {})
        rows = self._transact(lambda connection: connection.execute(_REQUIREMENTS).all(), write=False, single=True)
        self._requirements = {row.id: row.body for row in rows}
        return True

    def _execute(self, statement: Update, parameters: dict[str, Any]) -> int:
        """Execute one statement as its own transaction; return the number of changed rows."""
        return self._transact(lambda connection: connection.execute(statement, parameters).rowcount, single=True)

    def _infrastructure_error(self, row: Row, reason: str) -> Outcome:
        """Return the outcome of a job that has none: masked out of the loss, with the state unchanged."""
        try:
            state = self._payloads.unpack(row.payload, Job.from_dict).state
        except (OSError, ProtocolError):  # The job may be dead because its payload is unreadable; the run goes on.
            return _masked("", "", 0.0, reason)
        return _masked(state.snapshot, state.script, state.metric, reason)


_REQUIREMENTS = select(schema.requirements.c.id, schema.requirements.c.body).order_by(schema.requirements.c.id)


def _claim(lease: Lease) -> dict[str, Any]:
    return {"job_id": lease.job.id, "held_token": lease.token}


@functools.lru_cache(maxsize=256)
def _serves(capabilities: Capabilities, requirements: str) -> bool:
    try:
        return not capabilities.lacking(Requirements.from_dict(json.loads(requirements)))
    except ValueError:  # Written by another version of this package: a worker of that version may serve it.
        return False


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
    # Sorted and unique: two transactions that lock the same rows lock them in the same order.
    ordered = sorted(set(job_ids))
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]
