"""The queue in PostgreSQL: many hosts, the server's clock, SKIP LOCKED to claim.

The URL is `postgresql://user:password@host:port/database` with libpq's options (`?sslmode=verify-full`); what it leaves
out comes from libpq's environment (PGPASSWORD, PGSSLMODE, ~/.pgpass). A server that restarts or is cut off is waited
for, with growing pauses.

A network that is cut says nothing: packets vanish, and a statement waits for its answer for ever. The kernel notices
where the server's host no longer acknowledges; where something in between still does (a proxy, a gateway that forgot
the connection, a host that hangs), only the time that an answer takes tells. Both give an `OperationalError` within
`SILENCE_SECONDS`, and the queue connects again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import psycopg
import sqlalchemy
from sqlalchemy import URL, ColumnElement, Connection, Double, cast, event, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from environments.queue.engine import Engine

T = TypeVar("T")

_LOCK = 0x6D6C6167
"""Advisory lock of those who create the tables."""
_REFUSALS = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "no password supplied",
    "could not translate host name",
    "certificate verify failed",
)
"""Connection errors that waiting does not cure."""
_LONGEST_PAUSE_SECONDS = 5.0
AT_ONCE = 2
"""Connections of one process: a thousand workers share one server. Threads wait for the milliseconds that a transaction
takes, which costs less than to connect."""
SILENCE_SECONDS = 30.0
"""Longest wait for an answer. Every statement of the queue is short; half a lease, so that it can still be renewed."""
CLIENT_OPTIONS = {
    "application_name": "mlagent",
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # Milliseconds. Keep-alives do not run while something sent is not acknowledged.
}
"""Of libpq, where the URL does not say otherwise."""
SERVER_OPTIONS = (
    "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 "
    "-c idle_in_transaction_session_timeout=60s"
)
"""The same on the other side: what a vanished client had locked is free again after a minute."""
WORKER_COLUMNS = (
    *("state", "ready_at", "attempts", "lapses", "token", "worker", "leased_at", "lease_until", "deadline"),
    *("late_results", "finished_at", "kind", "seconds", "outcome", "reason"),
)
"""Of a job, what a worker writes: its lease and its result, never what is to be done or who used the result."""
WORKER_GRANTS = (
    "GRANT SELECT ON mlagent_schema, mlagent_requirements TO {role}",
    "GRANT SELECT ON mlagent_jobs TO {role}",
    f"GRANT UPDATE ({', '.join(WORKER_COLUMNS)}) ON mlagent_jobs TO {{role}}",
    "GRANT SELECT, INSERT, UPDATE ON mlagent_workers TO {role}",
)
"""All that a worker's role needs: it can claim, complete and report, not add, change, delete or drop."""
PLANNER_OPTIONS = "-c enable_seqscan=off -c enable_sort=off -c jit=off"
"""Every statement that runs often has an index that gives its rows in order. By statistics of a moment when the queue
was empty the planner would read and sort all jobs for each claim (measured: 7 times the server's CPU time)."""


class PostgresEngine(Engine):
    insert = staticmethod(postgresql.insert)

    def __init__(self, url: URL, patience_seconds: float, clock: Callable[[], float] | None) -> None:
        super().__init__(url, patience_seconds, clock)
        self._engine = sqlalchemy.create_engine(
            url.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            pool_size=AT_ONCE,
            max_overflow=0,
            pool_timeout=None,
            pool_use_lifo=True,  # One connection that has everything prepared rather than several in turn.
        )
        event.listen(self._engine, "do_connect", lambda dialect, record, arguments, parameters: _connect(parameters))
        self._transactions = self._engine.execution_options(isolation_level="READ COMMITTED")

    def begin(self, write: bool, single: bool = False) -> AbstractContextManager[Connection]:
        return (self._engine if single else self._transactions).begin()

    def exclude_others(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))

    def start_clock(self, connection: Connection) -> None:
        """Do nothing: the server's clock runs."""

    def is_transient(self, error: DBAPIError) -> bool:
        if not isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            return error.connection_invalidated
        return not any(refusal in str(error.orig) for refusal in _REFUSALS)

    def retry_delay(self, attempt: int) -> float:
        return min(0.05 * 2.0 ** min(attempt, 10), _LONGEST_PAUSE_SECONDS)

    def remedy(self, message: str) -> str:
        if any(refusal in message for refusal in _REFUSALS):
            return "; check user, database and password (from the URL, PGPASSWORD or ~/.pgpass)"
        if "permission denied" in message:
            return "; let the trainer's role create the tables, then `python -m environments.queue grant URL ROLE`"
        return ""

    def grant(self, role: str) -> None:
        """Give `role` what a worker needs and no more."""
        quoted = self._engine.dialect.identifier_preparer.quote_identifier(role)

        def run(connection: Connection) -> None:
            for statement in WORKER_GRANTS:
                connection.exec_driver_sql(statement.format(role=quoted))

        self.transact(run)

    def close(self) -> None:
        self._engine.dispose()

    def _database_time(self) -> ColumnElement[float]:
        # Stable within a statement, unlike clock_timestamp(), so that it can bound an index scan.
        return cast(func.extract("epoch", func.statement_timestamp()), Double)


class _Connection(psycopg.Connection[Any]):
    """Raises OperationalError, and is closed, when an answer takes longer than `SILENCE_SECONDS`."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        try:
            return super().wait(_limited(gen, SILENCE_SECONDS), *args, **kwargs)
        except _SilenceError:
            self.close()
            raise


class _SilenceError(psycopg.OperationalError):
    """The server, or the network on the way to it, says nothing."""


def _connect(parameters: Mapping[str, Any]) -> _Connection:
    """Connect with libpq's `parameters`, and with those above where they are silent. Raises psycopg.Error."""
    given = parameters.get("options") or os.environ.get("PGOPTIONS", "")
    # The server takes the last: what the user says.
    options = f"{SERVER_OPTIONS} {PLANNER_OPTIONS} {given}".strip()
    return _Connection.connect(**{**CLIENT_OPTIONS, **parameters, "options": options})


def _limited(gen: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """A conversation with the server, as psycopg drives it: it asks what to wait for, and is told what is ready, or,
    every 0.1 s, that nothing is."""
    end = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > end:
                raise _SilenceError(f"no answer for {seconds:g} s: the connection is given up")
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value
