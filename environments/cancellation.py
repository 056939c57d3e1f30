"""Cancellation of the step that a thread takes: a worker asks for it, the loops that wait for a script look at it.

A worker whose lease was lost computes for nobody. It cannot end a thread, but it can end what the thread waits for.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator

_EVENT: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancellation", default=None)


@contextlib.contextmanager
def cancellable(event: threading.Event) -> Iterator[None]:
    """Let `event` cancel what this thread executes inside the block."""
    token = _EVENT.set(event)
    try:
        yield
    finally:
        _EVENT.reset(token)


def is_cancelled() -> bool:
    """Tell whether this thread's step was cancelled."""
    event = _EVENT.get()
    return event is not None and event.is_set()
