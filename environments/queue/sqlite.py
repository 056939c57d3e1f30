"""The queue in one SQLite file: no server, any number of processes of one host.

Time counts from the start of the host, so setting the host's clock does not move it. The offset is in the database, so
that all processes agree.

Write-ahead logging means that readers never wait. Writers take turns by a lock on a file beside the database.
`synchronous` is NORMAL: a killed process loses nothing; a power cut may lose the last commits, whose work is then
repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, ColumnElement, Connection, delete, event, func, insert, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from environments.files.file_systems import network_file_system
from environments.queue.base import QueueError
from environments.queue.engine import Engine, clock_expression
from environments.queue.schema import clock, jobs, workers

_OLDEST = (3, 35)
"""First SQLite version with RETURNING."""
_POLL_SECONDS = (0.002, 0.015)
"""Minimum and maximum wait between two checks of the file's version (about 5 microseconds each)."""


class SqliteEngine(Engine):
    insert = staticmethod(sqlite.insert)

    def __init__(self, url: URL, patience_seconds: float, clock: Callable[[], float] | None) -> None:
        super().__init__(url, patience_seconds, clock)
        self._path = _checked_path(url)
        self._turn = _Turn(self._path.with_name(f"{self._path.name}-turn"))
        self._engine = sqlalchemy.create_engine(
            URL.create("sqlite", database=str(self._path)),
            connect_args={"timeout": 0, "check_same_thread": False},
            hide_parameters=True,
            pool_size=4,
            max_overflow=-1,
        )
        event.listen(self._engine, "connect", _on_connect)
        event.listen(self._engine, "begin", _on_begin)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        self._clock_offset = 0.0

    @contextmanager
    def begin(self, write: bool, single: bool = False) -> Iterator[Connection]:
        if not write:
            with self._engine.begin() as connection:
                yield connection
            return
        with self._turn, self._writer.begin() as connection:
            yield connection

    def exclude_others(self, connection: Connection) -> None:
        """Do nothing: SQLite runs one write transaction at a time."""

    def start_clock(self, connection: Connection) -> None:
        boot = _boot()
        offset = connection.scalar(select(clock.c.offset).where(clock.c.boot == boot)) if boot else None
        if offset is None:
            # First process since the host started: time must not precede any recorded time, whatever the clock says.
            recorded = [jobs.c.enqueued_at, jobs.c.leased_at, jobs.c.finished_at, workers.c.last_seen]
            times = [connection.scalar(select(func.max(column))) for column in recorded]
            offset = max([time.time(), *(known for known in times if known is not None)]) - _seconds_since_boot()
            connection.execute(delete(clock))
            connection.execute(insert(clock).values(boot=boot, offset=offset))
        self._clock_offset = offset

    @contextmanager
    def watch(self) -> Iterator[_FileChanges]:
        # A raw connection: inside a transaction the version would not change.
        connection = self._engine.raw_connection()
        try:
            yield _FileChanges(connection.driver_connection)
        finally:
            connection.close()

    def is_transient(self, error: DBAPIError) -> bool:
        return "locked" in str(error.orig) or "busy" in str(error.orig)

    def retry_delay(self, attempt: int) -> float:
        return 0.005 if attempt < 1000 else 0.1

    def remedy(self, message: str) -> str:
        if "locked" in message:
            return f" for {self.patience_seconds:.0f} s: find the process that holds it (`fuser {self._path}`)"
        if "full" in message or "disk I/O" in message:
            return f": free space on the disk of {self._path}"
        if "readonly" in message or "unable to open" in message:
            return f": grant this user write access to {self._path} and to its folder"
        return ""

    def close(self) -> None:
        self._engine.dispose()
        self._turn.close()

    def _database_time(self) -> ColumnElement[float]:
        return clock_expression(lambda: _seconds_since_boot() + self._clock_offset)


def _seconds_since_boot() -> float:
    """Return a time that never goes back while the host runs, the same in all its processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _boot() -> str:
    """Return an id of this start of the host; empty if the host has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class _Turn:
    """A lock that lets one thread of one process write at a time while the others sleep.

    SQLite's own lock can only be polled: 32 processes would spend all their time on that. The kernel frees this lock
    when its holder dies. A holder that is stopped during a transaction blocks the others until it continues, as with
    SQLite's.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = open(path, "ab")  # noqa: SIM115 - open as long as the queue is
        except OSError as error:
            raise QueueError(f"{path} cannot be written ({error.strerror}): grant this user write access") from error
        self._thread = threading.Lock()

    def __enter__(self) -> None:
        self._thread.acquire()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except BaseException:
            self._thread.release()
            raise

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._thread.release()

    def close(self) -> None:
        self._file.close()


class _FileChanges:
    """Detects commits of other connections by SQLite's version of the file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._seen = self._version()

    def wait(self, timeout_seconds: float) -> bool:
        end, pause = time.monotonic() + timeout_seconds, _POLL_SECONDS[0]
        while (version := self._version()) == self._seen:
            remaining = end - time.monotonic()
            if remaining <= 0:
                return False
            time.sleep(min(pause, remaining))
            pause = min(1.5 * pause, _POLL_SECONDS[1])
        self._seen = version
        return True

    def _version(self) -> int:
        return self._connection.execute("PRAGMA data_version").fetchone()[0]


def _checked_path(url: URL) -> Path:
    if sqlite3.sqlite_version_info < _OLDEST:
        raise QueueError(f"SQLite is {sqlite3.sqlite_version}; the queue needs 3.35 or later: use a newer Python")
    if not url.database or url.database == ":memory:":
        raise QueueError("the queue's URL names no file; write sqlite:////absolute/path/queue.db")
    path = Path(url.database).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueueError(f"folder {path.parent} of the queue cannot be created ({error.strerror})") from error
    if kind := network_file_system(path):
        raise QueueError(
            f"queue {path} lies on a network file system ({kind}), where SQLite's locks do not hold and data is lost: "
            "name a local disk, or use postgresql:// for workers on several hosts"
        )
    return path


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # Transactions begin in `_on_begin`, not where the driver guesses.
    for attempt in range(1000):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:  # Two processes create the file at once.
            if "locked" not in str(error) or attempt == 999:
                raise
            time.sleep(0.005)
    connection.execute("PRAGMA synchronous = NORMAL")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
