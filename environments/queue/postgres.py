"""The queue in PostgreSQL: many hosts, the server's clock, SKIP LOCKED to claim and LISTEN / NOTIFY to wake.

The URL is `postgresql://user:password@host:port/database` with libpq's options (`?sslmode=verify-full`); what it leaves
out comes from libpq's environment (PGPASSWORD, PGSSLMODE, ~/.pgpass). A server that restarts or is cut off is waited
for, with growing pauses. A pooler in transaction mode does not carry LISTEN: connect to the server itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy
from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    Double,
    Select,
    Text,
    any_,
    bindparam,
    cast,
    event,
    func,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from environments.queue.base import QueueError
from environments.queue.engine import Engine

_LOCK = 0x6D6C6167
"""Advisory lock of those who create the tables."""
_NOTIFY = select(func.pg_notify(bindparam("channel", type_=Text), ""))
_NOTIFY_UNSYNCED = _NOTIFY.add_columns(func.set_config("synchronous_commit", "off", True))
"""By itself: there is nothing of it to bring to the disk."""
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
"""Transactions of one process at once, and so its connections, beside those that listen: a thousand workers share one
server. Its other threads wait for the milliseconds that a transaction takes, which costs less than to connect."""
WORKER_COLUMNS = (
    *("state", "ready_at", "attempts", "token", "worker", "leased_at", "lease_until", "deadline", "late_results"),
    *("finished_at", "kind", "seconds", "outcome", "reason"),
)
"""Of a job, what a worker writes: its lease and its result, never what is to be done or who used the result."""
WORKER_GRANTS = (
    "GRANT SELECT ON mlagent_schema, mlagent_requirements TO {role}",
    "GRANT SELECT ON mlagent_jobs TO {role}",
    f"GRANT UPDATE ({', '.join(WORKER_COLUMNS)}) ON mlagent_jobs TO {{role}}",
    "GRANT SELECT, INSERT, UPDATE ON mlagent_workers TO {role}",
)
"""All that a worker's role needs: it can claim, complete and report, not add, change, delete or drop."""


class PostgresEngine(Engine):
    insert = staticmethod(postgresql.insert)

    def __init__(self, url: URL, patience_seconds: float, clock: Callable[[], float] | None) -> None:
        super().__init__(url, patience_seconds, clock)
        try:
            from environments.queue.postgres_connection import connect
        except ModuleNotFoundError:
            raise QueueError("psycopg is not installed: `pip install '.[postgres]'`") from None
        self._engine = sqlalchemy.create_engine(
            url.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            isolation_level="AUTOCOMMIT",
            pool_size=AT_ONCE,
            max_overflow=-1,  # Those that listen.
            pool_use_lifo=True,  # One connection that has everything prepared rather than several in turn.
        )
        event.listen(self._engine, "do_connect", lambda dialect, record, arguments, parameters: connect(parameters))
        self._transactions = self._engine.execution_options(isolation_level="READ COMMITTED")
        # Idle ones by channel: those who wait in a loop need not connect each time.
        self._listening: dict[str, list[_Notifications]] = {}
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._announcer = _Announcer(self)

    @contextmanager
    def begin(self, write: bool, single: bool = False) -> Iterator[Connection]:
        engine = self._engine if single else self._transactions
        with self._turns, engine.begin() as connection:
            yield connection

    def among(self, column: Column, query: Select) -> ColumnElement[bool]:
        # Not a join, which may read the whole table where statistics say that it is small.
        return column == any_(func.array(query.scalar_subquery()))

    def exclude_others(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))

    def notify(self, connection: Connection, channel: str) -> None:
        connection.execute(_NOTIFY, {"channel": channel})

    def announce(self, channel: str) -> None:
        self._announcer.add(channel)

    @contextmanager
    def watch(self, channel: str) -> Iterator[_Notifications]:
        idle = self._listening.setdefault(channel, [])
        try:
            notifications = idle.pop()
        except IndexError:
            notifications = _Notifications(self._engine, channel)
        try:
            yield notifications
        finally:
            idle.append(notifications)

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
        self._announcer.close()
        for idle in self._listening.values():
            while idle:
                idle.pop().close()
        self._engine.dispose()

    def _database_time(self) -> ColumnElement[float]:
        # Stable within a statement, unlike clock_timestamp(), so that it can bound an index scan.
        return cast(func.extract("epoch", func.statement_timestamp()), Double)


class _Announcer:
    """Sends notifications outside the transactions that they are about, and few of them.

    PostgreSQL commits those that notify one after the other, each waiting for the disk; results that notified in their
    own transactions would be as slow as that however many workers there are. The first is sent at once, what comes
    within `REST_SECONDS` of it with one more.
    """

    REST_SECONDS = 0.25

    def __init__(self, engine: PostgresEngine) -> None:
        self._engine = engine
        self._channels: set[str] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, channel: str) -> None:
        with self._changed:
            self._channels.add(channel)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Send what is not sent yet."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._channels or self._closed)
                channels, self._channels = self._channels, set()
                if not channels:
                    return
            # Those who wait look from time to time all the same: what is not sent costs them half a second.
            with contextlib.suppress(DBAPIError), self._engine.begin(write=True, single=True) as connection:
                for channel in channels:
                    connection.execute(_NOTIFY_UNSYNCED, {"channel": channel})
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self.REST_SECONDS)


class _Notifications:
    """A connection that listens, opened again when it breaks."""

    PROBE_SECONDS = 15.0
    """After so long without a word, the server is asked whether it still hears."""

    def __init__(self, engine: sqlalchemy.Engine, channel: str) -> None:
        self._engine, self._channel = engine, channel
        self._connection: sqlalchemy.PoolProxiedConnection | None = None
        self._heard_at = 0.0
        self._listen()

    def wait(self, timeout_seconds: float) -> bool:
        if self._connection is None and not self._listen():
            time.sleep(min(timeout_seconds, 1.0))
            return True  # What happened meanwhile is not known.
        try:
            driver = self._connection.driver_connection
            seconds = min(timeout_seconds, self.PROBE_SECONDS)
            if not any(True for _ in driver.notifies(timeout=seconds, stop_after=1)):
                if time.monotonic() - self._heard_at > self.PROBE_SECONDS:
                    driver.execute("SELECT 1")
                    self._heard_at = time.monotonic()
                return seconds < timeout_seconds
            self._heard_at = time.monotonic()
            # Those that came meanwhile ask for no further look.
            for _ in driver.notifies(timeout=0):
                pass
            return True
        except self._engine.dialect.dbapi.Error:
            self.close()
            return True

    def close(self) -> None:
        if self._connection is not None:
            # Dropped, not given back: a pooled connection must not listen.
            self._connection.invalidate()
            self._connection = None

    def _listen(self) -> bool:
        try:
            self._connection = self._engine.raw_connection()
            self._connection.driver_connection.execute(f"LISTEN {self._channel}")
            self._heard_at = time.monotonic()
        except (DBAPIError, self._engine.dialect.dbapi.Error):
            self.close()
        return self._connection is not None
