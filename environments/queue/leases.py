"""The statements of the lease protocol, built once: with SQLAlchemy, building a statement costs more than running it.

The fence is one condition in one place, `_held`: the row is leased, under this token, until later than now by the
database's clock. Whoever fails it has lost the job, whatever he did meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Double,
    Integer,
    Select,
    Text,
    Update,
    bindparam,
    case,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)

from environments.queue import schema
from environments.queue.schema import DEAD, DONE, LEASED, QUEUED, jobs

LONGEST_BACKOFF_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """What happens to a job whose attempt failed."""

    max_attempts: int = 5
    """Claims after which a job is dead."""
    backoff_seconds: float = 1.0
    """Before the second attempt; doubles with each, up to a minute."""

    def delay(self, attempts: ColumnElement[int]) -> ColumnElement[float]:
        """Backoff after `attempts` claims, in SQL."""
        delays = {n: min(self.backoff_seconds * 2.0 ** (n - 1), LONGEST_BACKOFF_SECONDS) for n in range(1, 20)}
        return case(delays, value=attempts, else_=LONGEST_BACKOFF_SECONDS)


class LeaseStatements:
    """Updates of `jobs` for one claim (parameters `job_id`, `held_token`) and for those whose time is up.

    Args:
      now: the database's time as an SQL expression.
      among: condition that a column is one of what a query gives.
    """

    def __init__(
        self,
        now: ColumnElement[float],
        retries: RetryPolicy,
        among: Callable[[Column, Select], ColumnElement[bool]],
    ) -> None:
        self._now, self._retries = now, retries
        lease_seconds = bindparam("lease_seconds", type_=Double)
        self._lease_seconds = lease_seconds
        self.renew = update(jobs).where(self._held).values(lease_until=_lesser(now + lease_seconds, jobs.c.deadline))
        """Parameter `lease_seconds`."""
        self.accept = (
            update(jobs)
            .where(self._held)
            .values(
                state=DONE,
                finished_at=now,
                kind=bindparam("result_kind", type_=Text),
                seconds=bindparam("result_seconds", type_=Double),
                outcome=bindparam("result", type_=Text),
            )
        )
        """Parameters `result_kind`, `result_seconds` and `result`."""
        self.accepted = select(jobs.c.id).where(*_CLAIM, schema.is_done)
        """Whether this very claim gave the accepted result."""
        self.count_late = update(jobs).where(_CLAIM[0]).values(late_results=jobs.c.late_results + 1)
        self.fail = self._give_back(self._held, bindparam("failure", type_=Text))
        """Parameter `failure`: the reason."""
        ran_out = (
            select(jobs.c.seq)
            .where(schema.leased, jobs.c.lease_until <= now)
            .order_by(jobs.c.lease_until)
            .with_for_update(skip_locked=True)
        )
        reason = literal("the lease of ") + jobs.c.worker + " ran out: it died, hung or was cut off"
        self.reap = self._give_back(among(jobs.c.seq, ran_out), reason)
        """Takes back the jobs whose leases ran out; no parameters."""

    @functools.lru_cache(maxsize=64)  # noqa: B019 - as many as there are sets of requirements, for the queue's life
    def claim(self, served: tuple[str, ...]) -> Update:
        """Lease the job, of those with the requirements `served` (ids), that has been ready the longest.

        Parameters `lease_seconds`, `claimed_by`, and `from_ready_at` with `from_seq`, where to begin (see `START`).
        Returns id, payload, token, attempts, ready_at and seq.
        """
        until = self._now + _lesser(self._lease_seconds, jobs.c.execution_seconds)
        return (
            update(jobs)
            .where(jobs.c.seq == self._oldest_ready(served))
            .values(
                state=LEASED,
                token=jobs.c.token + 1,
                attempts=jobs.c.attempts + 1,
                worker=bindparam("claimed_by", type_=Text),
                leased_at=self._now,
                lease_until=until,
                deadline=self._now + jobs.c.execution_seconds,
            )
            .returning(*(jobs.c[name] for name in ("id", "payload", "token", "attempts", *START)))
        )

    @property
    def _held(self) -> ColumnElement[bool]:
        """The fence: this claim of this job is still the one that counts."""
        return _CLAIM[0] & _CLAIM[1] & schema.is_leased & (jobs.c.lease_until > self._now)

    def _oldest_ready(self, served: tuple[str, ...]) -> ColumnElement[int]:
        """`seq` of the job to claim.

        One look into the index for each of the few distinct requirements: a scan past jobs that this worker cannot
        serve would cost more the longer they wait.
        """
        # A literal: for a limit that it does not know, PostgreSQL plans with a tenth of the table, each time anew.
        one = literal_column("1")
        firsts = [
            select(jobs.c.seq, jobs.c.ready_at)
            .where(schema.queued, jobs.c.requirements == identity, jobs.c.ready_at <= self._now, _FROM)
            .order_by(jobs.c.ready_at, jobs.c.seq)
            .limit(one)
            .with_for_update(skip_locked=True)
            for identity in served
        ]
        if len(firsts) == 1:
            return firsts[0].with_only_columns(jobs.c.seq).scalar_subquery()
        first, *others = [select(query.subquery()) for query in firsts]
        candidates = first.union_all(*others).subquery()
        oldest = select(candidates.c.seq).order_by(candidates.c.ready_at, candidates.c.seq).limit(one)
        return oldest.scalar_subquery()

    def _give_back(self, where: ColumnElement[bool], reason: ColumnElement[str]) -> Update:
        """End the current attempt of the jobs `where`: queued again after a backoff, or dead."""
        spent = jobs.c.attempts >= jobs.c.max_attempts
        values = {
            "state": case((spent, DEAD), else_=QUEUED),
            "ready_at": self._now + self._retries.delay(jobs.c.attempts),
            "finished_at": case((spent, self._now)),
            "reason": reason,
        }
        return update(jobs).where(where).values(values)


START = {"ready_at": 0.0, "seq": 0}
"""The first place in the order of claims. Who begins at the place of his last claim does not pass all that was claimed
before it, which lies dead at the head of PostgreSQL's index until that is vacuumed, a minute later at best."""
_FROM = tuple_(jobs.c.ready_at, jobs.c.seq) >= tuple_(
    bindparam("from_ready_at", type_=Double), bindparam("from_seq", type_=BigInteger)
)
_CLAIM = (jobs.c.id == bindparam("job_id", type_=Text), jobs.c.token == bindparam("held_token", type_=Integer))


def _lesser(first: ColumnElement[float], second: ColumnElement[float]) -> ColumnElement[float]:
    return case((first < second, first), else_=second)
