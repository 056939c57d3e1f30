"""Connections with deadlines: a request that is incomplete, or an answer that is not read in time, ends its connection.

Uvicorn only limits how long an idle connection is kept after an answer. A client that sends half a request, or reads
half an answer, would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1, with deadlines that close the connection."""

    receive_seconds = 20.0
    """Time limit for a request, from its first byte (the first request: from the connection's start) to its last."""
    stalled_seconds = 60.0
    """Time limit between two reads of a client whose answer is waiting."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._receiving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the deadline of the first request."""
        super().connection_made(transport)
        self._receiving = self.loop.call_later(self.receive_seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Keep the deadline until the request is complete."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._receiving = self._receiving or self.loop.call_later(self.receive_seconds, self._give_up)
        else:
            self._receiving = _stopped(self._receiving)

    def pause_writing(self) -> None:
        """Start the deadline of a client that does not read."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(self.stalled_seconds, self._give_up)

    def resume_writing(self) -> None:
        """Stop that deadline."""
        super().resume_writing()
        self._stalled = _stopped(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all deadlines."""
        self._receiving, self._stalled = _stopped(self._receiving), _stopped(self._stalled)
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
