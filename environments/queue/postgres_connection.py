"""PostgreSQL connections that notice silence.

A network that is cut says nothing: packets vanish, and a statement waits for its answer for ever. The kernel notices
where the server's host no longer acknowledges; where something in between still does (a proxy, a gateway that forgot
the connection, a host that hangs), only the time that an answer takes tells. Both give an `OperationalError` within
`SILENCE_SECONDS`, and the queue connects again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")

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
PLANNER_OPTIONS = "-c enable_seqscan=off -c enable_sort=off -c jit=off -c plan_cache_mode=force_generic_plan"
"""Every statement that runs often has an index that gives its rows in order. Left to itself, the planner believes
statistics of a moment when the queue was empty, and reads and sorts a hundred thousand jobs for each claim; or it plans
each claim anew."""


class Connection(psycopg.Connection[Any]):
    """Raises OperationalError, and is closed, when an answer takes longer than `SILENCE_SECONDS`."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        try:
            return super().wait(_limited(gen, SILENCE_SECONDS), *args, **kwargs)
        except _SilenceError:
            self.close()
            raise


class _SilenceError(psycopg.OperationalError):
    """The server, or the network on the way to it, says nothing."""


def connect(parameters: Mapping[str, Any]) -> Connection:
    """Connect with libpq's `parameters`, and with those above where they are silent. Raises psycopg.Error."""
    given = parameters.get("options") or os.environ.get("PGOPTIONS", "")
    # The server takes the last: what the user says.
    options = f"{SERVER_OPTIONS} {PLANNER_OPTIONS} {given}".strip()
    return Connection.connect(**{**CLIENT_OPTIONS, **parameters, "options": options})


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
