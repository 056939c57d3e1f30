"""Interface of the databases behind the queue: connecting, transactions, time, waiting for changes.

`environments.queue.sqlite` and `environments.queue.postgres` are the two engines; `environments.queue.sql` is the
queue itself, written once. Messages contain URLs only through `safe_url`, and errors of a driver only through
`Engine.explain`: neither shows a password.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from urllib.parse import quote_plus

import sqlalchemy
from sqlalchemy import URL, ColumnElement, Connection, Double, bindparam
from sqlalchemy.exc import ArgumentError, DBAPIError

from environments.queue.base import QUEUE_VARIABLE, Changes, QueueError

TELL_SECONDS = 3.0
"""Time after which it is told that a database does not answer, while it is tried again."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


def parse_url(url: str) -> URL:
    """Parse a URL.

    Raises:
      QueueError: it is invalid. The message does not repeat it: it may hold a password.
    """
    try:
        return sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        raise QueueError(
            "the queue's URL cannot be parsed; write sqlite:////absolute/path/queue.db or "
            "postgresql://user:password@host:5432/database"
        ) from None


def take_credentials(url: str, variables: MutableMapping[str, str]) -> str:
    """Return `url` with the password of libpq's environment; remove that and the URL itself from `variables`.

    A sandboxed script can read the environment of the process that started it, so a process that starts sandboxes must
    not keep them there. libpq would need PGPASSWORD for every reconnection, so the password goes into the URL.

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
    """Return the URL for people: without password and options."""
    return url.set(query={}).render_as_string(hide_password=True)


def clock_expression(clock: Callable[[], float]) -> ColumnElement[float]:
    """Return an SQL expression for this process's clock, read whenever a statement is executed."""
    return bindparam("now", callable_=clock, type_=Double)


class Engine(abc.ABC):
    """One database, connected.

    Attributes:
      insert: INSERT with ON CONFLICT in this database's dialect.
      patience_seconds: how long a transaction is retried while the database is locked, gone or restarting.
      now: queue time, in seconds since 1970, as an SQL expression; evaluated when a statement is executed.
    """

    insert: Callable[..., Any]

    def __init__(self, url: URL, patience_seconds: float, clock: Callable[[], float] | None) -> None:
        self.url = url
        self.patience_seconds = patience_seconds
        self.now = self._database_time() if clock is None else clock_expression(clock)

    def transact(self, work: Callable[[Connection], T], write: bool = True, single: bool = False) -> T:
        """Run `work` in one transaction, with retries while the database is busy or unreachable. `work` must be
        repeatable.

        Args:
          work: function of a connection.
          write: whether it writes.
          single: whether it executes only one statement. That is its own transaction, which saves BEGIN and COMMIT.

        Raises:
          QueueError: the database refuses, or stays unreachable for `patience_seconds`.
        """
        started, attempt, told = time.monotonic(), 0, False
        while True:
            try:
                with self.begin(write, single) as connection:
                    return work(connection)
            except DBAPIError as error:
                if not self.is_transient(error) or time.monotonic() - started > self.patience_seconds:
                    raise QueueError(self.explain(error)) from None
                if not told and time.monotonic() - started > TELL_SECONDS:
                    _log.warning("%s; trying again for up to %.0f s", self.explain(error), self.patience_seconds)
                    told = True
            attempt += 1
            time.sleep(self.retry_delay(attempt) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret

    def explain(self, error: DBAPIError) -> str:
        """Describe an error in one line, for a person."""
        text = str(error.orig).strip().splitlines()
        text = text[0] if text else type(error.orig).__name__
        password = self.url.password
        if password:
            text = text.replace(password, "***").replace(quote_plus(password), "***")
        return f"queue {safe_url(self.url)}: {text}{self.remedy(text)}"

    def remedy(self, message: str) -> str:
        """Return the remedy for a driver's message, or an empty string."""
        return ""

    @abc.abstractmethod
    def start_clock(self, connection: Connection) -> None:
        """Make `now` usable; called once, when the tables exist."""

    @contextlib.contextmanager
    def watch(self) -> Iterator[Changes]:
        """Watch the queue from now on. By default every wait lasts its full time and returns True."""
        yield _Pause()

    @abc.abstractmethod
    def begin(self, write: bool, single: bool = False) -> AbstractContextManager[Connection]:
        """Open a transaction that is committed at the end of the block or, if `single`, with its statement."""

    @abc.abstractmethod
    def exclude_others(self, connection: Connection) -> None:
        """Lock out other processes that want to create the tables, until this transaction ends."""

    @abc.abstractmethod
    def is_transient(self, error: DBAPIError) -> bool:
        """Check whether the same transaction may succeed later."""

    @abc.abstractmethod
    def retry_delay(self, attempt: int) -> float:
        """Return the approximate seconds to wait before a retry."""

    @abc.abstractmethod
    def close(self) -> None: ...

    @abc.abstractmethod
    def _database_time(self) -> ColumnElement[float]: ...


class _Pause:
    def wait(self, timeout_seconds: float) -> bool:
        time.sleep(timeout_seconds)
        return True
