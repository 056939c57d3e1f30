"""The statements of the lease protocol, built once.

The fence is a single condition: the row is leased, under this token, and by the database's clock the lease has not run
out. A claim that fails it has lost the job, whatever its worker did meanwhile.
"""

from __future__ import annotations

import dataclasses

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Text,
    Update,
    bindparam,
    case,
    cast,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from environments.queue import schema
from environments.queue.schema import DEAD, DONE, LEASED, QUEUED, jobs

LONGEST_BACKOFF_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Retry policy of failed attempts. A job keeps the two limits of the queue that added it."""

    max_attempts: int = 5
    """Claims after which a job is dead."""
    backoff_seconds: float = 1.0
    """Pause before the second attempt; doubles with each attempt, up to a minute."""
    max_lapses: int = 3
    """Leases that may run out before a job is set aside: it probably kills its workers."""

    def delay(self, attempts: ColumnElement[int]) -> ColumnElement[float]:
        """Return the backoff after `attempts` claims, in SQL."""
        delays = {n: min(self.backoff_seconds * 2.0 ** (n - 1), LONGEST_BACKOFF_SECONDS) for n in range(1, 20)}
        return case(delays, value=attempts, else_=LONGEST_BACKOFF_SECONDS)


class LeaseStatements:
    """Updates of `jobs`: for one claim (parameters `job_id` and `held_token`), for several, for leases that ran out.

    Args:
      now: database time as an SQL expression.
      retries: retry policy of expired leases and failed attempts.
    """

    def __init__(self, now: ColumnElement[float], retries: RetryPolicy) -> None:
        self._now, self._retries = now, retries
        lease_seconds = bindparam("lease_seconds", type_=Double)
        is_current = schema.leased & (jobs.c.lease_until > now)
        held = _CLAIM & is_current
        oldest = (
            select(jobs.c.seq)
            .where(schema.queued, jobs.c.ready_at <= now, jobs.c.requirements.in_(bindparam("served", expanding=True)))
            .order_by(jobs.c.ready_at, jobs.c.seq)
            .limit(literal_column("1"))  # A literal: for a parameter the planner assumes a tenth of the table.
            .with_for_update(skip_locked=True)
        )
        self.claim = (
            update(jobs)
            .where(jobs.c.seq == oldest.scalar_subquery())
            .values(
                state=LEASED,
                token=jobs.c.token + 1,
                attempts=jobs.c.attempts + 1,
                worker=bindparam("claimed_by", type_=Text),
                leased_at=now,
                lease_until=now + _lesser(lease_seconds, jobs.c.execution_seconds),
                deadline=now + jobs.c.execution_seconds,
            )
            .returning(*(jobs.c[name] for name in ("id", "payload", "token", "attempts", "lapses")))
        )
        """Leases the job that has been ready longest. Parameters: `served` (ids of requirements that the worker meets),
        `claimed_by` and `lease_seconds`."""
        self.renew = (
            update(jobs)
            .where(tuple_(jobs.c.id, jobs.c.token).in_(bindparam("claims", expanding=True)), is_current)
            .values(lease_until=_lesser(now + lease_seconds, jobs.c.deadline))
            .returning(jobs.c.id)
        )
        """Renews leases. Parameters: `claims`, of (id, token), and `lease_seconds`. Returns the ids still held."""
        self.accept = (
            update(jobs)
            .where(held)
            .values(
                state=DONE,
                finished_at=now,
                kind=bindparam("result_kind", type_=Text),
                seconds=bindparam("result_seconds", type_=Double),
                outcome=bindparam("result", type_=Text),
            )
        )
        """Accepts a result. Parameters: `result_kind`, `result_seconds` and `result`."""
        self.accepted = select(jobs.c.id).where(_CLAIM, schema.done)
        """Selects the job if this very claim gave the accepted result."""
        self.count_late = update(jobs).where(_JOB).values(late_results=jobs.c.late_results + 1)
        failure = bindparam("failure", type_=Text)
        spent = jobs.c.attempts >= jobs.c.max_attempts
        self.fail = self._end_attempt(held, spent, failure)
        """Ends a failed attempt. Parameter: `failure`, the reason."""
        self.release = update(jobs).where(held).values(state=QUEUED, attempts=jobs.c.attempts - 1, ready_at=now)
        """Requeues the job as if it had not been claimed."""
        self.set_aside = update(jobs).where(held).values(state=DEAD, finished_at=now, reason=failure)
        """Ends a job that no attempt can finish. Parameter: `failure`."""
        ran_out = select(jobs.c.seq).where(schema.leased, jobs.c.lease_until <= now).with_for_update(skip_locked=True)
        lost = literal("the lease of ") + jobs.c.worker + " ran out: it died, hung or was cut off"
        suspect = jobs.c.lapses + 1 >= jobs.c.max_lapses
        note = (
            literal("set aside, since ")
            + cast(jobs.c.max_lapses, Text)
            + " leases of it ran out and it may kill its workers; the last: "
        )
        self.reap = self._end_attempt(
            jobs.c.seq.in_(ran_out), or_(spent, suspect), case((suspect, note + lost), else_=lost)
        ).values(lapses=jobs.c.lapses + 1)
        """Ends the attempts whose leases ran out. No parameters."""

    def _end_attempt(self, where: ColumnElement[bool], last: ColumnElement[bool], reason: ColumnElement[str]) -> Update:
        """End the current attempt of the jobs `where`: dead if it was their `last`, else queued after a backoff."""
        values = {
            "state": case((last, DEAD), else_=QUEUED),
            "ready_at": self._now + self._retries.delay(jobs.c.attempts),
            "finished_at": case((last, self._now)),
            "reason": reason,
        }
        return update(jobs).where(where).values(values)


_JOB = jobs.c.id == bindparam("job_id", type_=Text)
_CLAIM = _JOB & (jobs.c.token == bindparam("held_token", type_=Integer))


def _lesser(first: ColumnElement[float], second: ColumnElement[float]) -> ColumnElement[float]:
    return case((first < second, first), else_=second)
