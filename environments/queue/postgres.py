"""The queue in PostgreSQL: many hosts, the server's clock, SKIP LOCKED to claim.

The URL is `postgresql://user:password@host:port/database` with libpq's options (`?sslmode=verify-full`). Missing parts
come from libpq's environment (PGPASSWORD, PGSSLMODE, ~/.pgpass). The engine waits for a server that restarts or is
unreachable, with growing pauses.

A cut network gives no error: packets vanish, and a statement would wait for its answer for ever. The kernel detects a
server host that no longer acknowledges. If something in between still acknowledges (a proxy, a gateway that forgot the
connection, a host that hangs), only a time limit on the answer helps. Both give an `OperationalError` within
`SILENCE_SECONDS`, and the queue reconnects.
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
"""Id of the advisory lock for creating the tables."""
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
"""Maximum connections per process, since a thousand workers share one server.

Threads wait for each other's transactions: these take milliseconds, less than connecting.
"""
SILENCE_SECONDS = 30.0
"""Maximum wait for an answer. Statements are short. It is half a lease, so that the lease can still be renewed."""
CLIENT_OPTIONS = {
    "application_name": "mlagent",
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # Milliseconds. Keep-alives do not run while sent data is unacknowledged.
}
"""Defaults of libpq's options, which the URL overrides."""
SERVER_OPTIONS = (
    "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 "
    "-c idle_in_transaction_session_timeout=60s"
)
"""The same on the server: locks of a vanished client are free again after a minute."""
WORKER_COLUMNS = (
    *("state", "ready_at", "attempts", "lapses", "token", "worker", "leased_at", "lease_until", "deadline"),
    *("late_results", "finished_at", "kind", "seconds", "outcome", "reason"),
)
"""Columns of a job that a worker writes: lease and result, never the job itself or the consumer of its result."""
WORKER_GRANTS = (
    "GRANT SELECT ON mlagent_schema, mlagent_requirements TO {role}",
    "GRANT SELECT ON mlagent_jobs TO {role}",
    f"GRANT UPDATE ({', '.join(WORKER_COLUMNS)}) ON mlagent_jobs TO {{role}}",
    "GRANT SELECT, INSERT, UPDATE ON mlagent_workers TO {role}",
)
"""Privileges of a worker's role: claim, complete and report, but not add, change, delete or drop."""
PLANNER_OPTIONS = "-c enable_seqscan=off -c enable_sort=off -c jit=off"
"""Planner options. Every frequent statement has an index that gives its rows in order. With statistics from a moment
when the queue was empty, the planner would read and sort all jobs for each claim (measured: 7 times the server's CPU
time)."""


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
            pool_use_lifo=True,  # One connection with all statements prepared rather than several in turn.
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
        """Grant `role` the privileges that a worker needs, and no more."""
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
    """A connection that raises OperationalError and closes if an answer takes longer than `SILENCE_SECONDS`."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        try:
            return super().wait(_limited(gen, SILENCE_SECONDS), *args, **kwargs)
        except _SilenceError:
            self.close()
            raise


class _SilenceError(psycopg.OperationalError):
    """The server, or the network to it, does not respond."""


def _connect(parameters: Mapping[str, Any]) -> _Connection:
    """Connect with libpq's `parameters`, completed by the defaults above. Raises psycopg.Error."""
    given = parameters.get("options") or os.environ.get("PGOPTIONS", "")
    # The server takes the last value: the user's.
    options = f"{SERVER_OPTIONS} {PLANNER_OPTIONS} {given}".strip()
    return _Connection.connect(**{**CLIENT_OPTIONS, **parameters, "options": options})


def _limited(gen: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """Limit the time of each conversation with the server, which psycopg drives as a generator.

    It yields the event to wait for and receives the ready state, or, every 0.1 s, that nothing is ready.
    """
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
