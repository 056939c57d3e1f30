"""What differs between the databases behind the queue: connecting, transactions, time, waiting for changes.

`environments.queue.sqlite` and `environments.queue.postgres` are the two engines; `environments.queue.sql` is the
queue itself, written once. URLs reach a message only through `safe_url`, and errors of a driver only through
`Engine.explain`: neither shows a password.
"""

from __future__ import annotations

import abc
import contextlib
import random
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from urllib.parse import quote_plus

import sqlalchemy
from sqlalchemy import URL, ColumnElement, Connection, Double, bindparam
from sqlalchemy.exc import ArgumentError, DBAPIError

from environments.queue.base import Changes, QueueError
from environments.worker.supervision import QUEUE_VARIABLE

T = TypeVar("T")


def parse_url(url: str) -> URL:
    """The URL, parsed. Raises QueueError, without repeating it: it may hold a password."""
    try:
        return sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        raise QueueError(
            "the queue's URL cannot be parsed; write sqlite:////absolute/path/queue.db or "
            "postgresql://user:password@host:5432/database"
        ) from None


def take_credentials(url: str, variables: MutableMapping[str, str]) -> str:
    """`url`, complete with the password of libpq's environment; `variables` lose it, and the URL itself.

    For a process that starts others which must not find them: what runs in a sandbox can read the environment of the
    process that started it. The library would read PGPASSWORD whenever it connects again, so it goes into the URL.

    Raises:
      QueueError: the URL cannot be parsed.
    """
    variables.pop(QUEUE_VARIABLE, None)
    password = variables.pop("PGPASSWORD", None)
    parsed = parse_url(url)
    if password and parsed.password is None and parsed.get_backend_name() == "postgresql":
        return parsed.set(password=password).render_as_string(hide_password=False)
    return url


def safe_url(url: URL) -> str:
    """The URL for people: without password and options."""
    return url.set(query={}).render_as_string(hide_password=True)


def clock_expression(clock: Callable[[], float]) -> ColumnElement[float]:
    """The time of a clock of this process, read whenever a statement is executed."""
    return bindparam("now", callable_=clock, type_=Double)


class Engine(abc.ABC):
    """One database, connected.

    Attributes:
      insert: INSERT with ON CONFLICT in this database's dialect.
      patience_seconds: how long a transaction is tried again while the database is locked, gone or restarting.
      now: the queue's time, in seconds since 1970, as an SQL expression; evaluated when a statement is executed.
    """

    insert: Callable[..., Any]

    def __init__(self, url: URL, patience_seconds: float, clock: Callable[[], float] | None) -> None:
        self.url = url
        self.patience_seconds = patience_seconds
        self.now = self._database_time() if clock is None else clock_expression(clock)

    def transact(self, work: Callable[[Connection], T], write: bool = True, single: bool = False) -> T:
        """Run `work` in one transaction; try again while the database is busy or away. `work` must be repeatable.

        Args:
          single: `work` executes one statement, a transaction by itself: a server is spared BEGIN and COMMIT.

        Raises:
          QueueError: the database refuses, or did not come back within `patience_seconds`.
        """
        started, attempt = time.monotonic(), 0
        while True:
            try:
                with self.begin(write, single) as connection:
                    return work(connection)
            except DBAPIError as error:
                if not self.is_transient(error) or time.monotonic() - started > self.patience_seconds:
                    raise QueueError(self.explain(error)) from None
            attempt += 1
            time.sleep(self.retry_delay(attempt) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret

    def explain(self, error: DBAPIError) -> str:
        """What went wrong, in one line, for a person."""
        text = str(error.orig).strip().splitlines()
        text = text[0] if text else type(error.orig).__name__
        password = self.url.password
        if password:
            text = text.replace(password, "***").replace(quote_plus(password), "***")
        return f"queue {safe_url(self.url)}: {text}{self.remedy(text)}"

    def remedy(self, message: str) -> str:
        """What to do about a driver's message, or nothing."""
        return ""

    @abc.abstractmethod
    def start_clock(self, connection: Connection) -> None:
        """Make `now` usable; called once, when the tables are there."""

    @contextlib.contextmanager
    def watch(self) -> Iterator[Changes]:
        """Watch the queue from now on. By default every wait lasts its time and ends with another look."""
        yield _Pause()

    @abc.abstractmethod
    def begin(self, write: bool, single: bool = False) -> AbstractContextManager[Connection]:
        """A transaction, committed at the end of the block, or, for a `single` statement, with it."""

    @abc.abstractmethod
    def exclude_others(self, connection: Connection) -> None:
        """Hold off every other process that wants to create the tables, until this transaction ends."""

    @abc.abstractmethod
    def is_transient(self, error: DBAPIError) -> bool:
        """Whether the same transaction may succeed later."""

    @abc.abstractmethod
    def retry_delay(self, attempt: int) -> float:
        """Seconds to wait before trying again, about."""

    @abc.abstractmethod
    def close(self) -> None: ...

    @abc.abstractmethod
    def _database_time(self) -> ColumnElement[float]: ...


class _Pause:
    def wait(self, timeout_seconds: float) -> bool:
        time.sleep(timeout_seconds)
        return True
