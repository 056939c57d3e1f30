"""The reward queue. `open_queue` is the way in; `environments.queue.base` is the contract."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import URL

from environments.files.blobs import Store
from environments.queue.base import QueueError, RewardQueue
from environments.queue.engine import Engine, parse_url
from environments.queue.leases import RetryPolicy
from environments.queue.sql import SqlQueue

__all__ = ["QueueError", "RetryPolicy", "RewardQueue", "open_queue"]


def open_queue(
    url: str,
    *,
    store: Store | None = None,
    create: bool = True,
    retries: RetryPolicy | None = None,
    patience_seconds: float = 120.0,
    clock: Callable[[], float] | None = None,
) -> RewardQueue:
    """Open the queue at `url`: `sqlite:///PATH` (processes of one host) or `postgresql://...` (many hosts).

    Args:
      url: URL of the database.
      store: store for payloads over a few KB; the same for the trainer and every worker.
      create: whether to create missing tables.
      retries: retry policy of the jobs enqueued through this object.
      patience_seconds: how long to wait for a database that is locked, restarting or unreachable.
      clock: replacement of the database's clock (seconds since 1970), for tests and simulations.

    Raises:
      QueueError: the URL, the database or its version is unusable; the message says why, without credentials.
    """
    engine = open_engine(parse_url(url), patience_seconds, clock)
    return SqlQueue(engine, store, create, retries)


def open_engine(url: URL, patience_seconds: float, clock: Callable[[], float] | None = None) -> Engine:
    """Connect to the database at `url`; see `open_queue`."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        from environments.queue.sqlite import SqliteEngine as EngineOf
    elif backend == "postgresql":
        try:
            from environments.queue.postgres import PostgresEngine as EngineOf
        except ModuleNotFoundError:
            raise QueueError("psycopg is not installed: `pip install '.[postgres]'`") from None
    else:
        raise QueueError(f"the queue's URL begins with {backend}://; write sqlite:///PATH or postgresql://...")
    return EngineOf(url, patience_seconds, clock)
