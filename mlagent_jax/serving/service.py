"""The one batch that all requests share, on a thread of its own; requests come from an asyncio loop and go back there.

Admission is decided here: as many samples may be open as there are slots and places in the queue behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import jax

from mlagent_jax.sampling.config import Progress, Request
from mlagent_jax.sampling.sampler import Sampler
from mlagent_jax.serving.errors import ApiError, bad_request

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much the server takes on."""

    prompt_tokens: int
    """Of the longest prompt."""
    new_tokens: int
    """Of the longest completion."""
    slots: int
    """Sequences decoded at once."""
    waiting: int
    """Samples that may wait for a slot; more are refused with status 429."""


class Service:
    """Makes completions; `open` it on the loop that calls it.

    Args:
        sampler: Model and tokenizer.
        limits: What is taken on.
        mesh: Where the model lives; None for one device.
    """

    def __init__(self, sampler: Sampler, limits: Limits, mesh: jax.sharding.Mesh | None = None) -> None:
        self.sampler, self.limits, self._mesh = sampler, limits, mesh
        self._ids = itertools.count()
        self._listeners: dict[int, asyncio.Queue[Progress]] = {}  # by request, while it is open
        self._orders: queue.SimpleQueue[list[Request] | set[int] | None] = queue.SimpleQueue()
        self._failed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve within; requests that are open at the end are dropped."""
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._orders.put(None)
            await asyncio.to_thread(thread.join)

    @property
    def healthy(self) -> bool:
        """Whether completions are being made."""
        return self._loop is not None and not self._failed

    @property
    def open_samples(self) -> int:
        """Samples asked for and not finished."""
        return len(self._listeners)

    @contextlib.asynccontextmanager
    async def samples(self, requests: Sequence[Request]) -> AsyncIterator[AsyncIterator[Progress]]:
        """Progress of `requests` until all have finished; `Progress.id` counts them. Leaving early cancels them.

        Raises:
            ApiError: 429 where too many samples are open, 503 where the sampler has failed.
        """
        room = self.limits.slots + self.limits.waiting
        if not self.healthy:
            raise ApiError(503, "the sampler has stopped: see the server's log, and start it again")
        if len(requests) > room:
            raise bad_request(f"{len(requests)} samples in one request: this server takes {room} at once", "n")
        if self.open_samples + len(requests) > room:
            raise ApiError(429, f"{self.open_samples} samples are open and {room} may be: try again later")
        places = dict(zip(self._ids, range(len(requests)), strict=False))
        heard: asyncio.Queue[Progress] = asyncio.Queue()
        self._listeners.update(dict.fromkeys(places, heard))
        self._orders.put([dataclasses.replace(request, id=key) for key, request in zip(places, requests, strict=True)])

        async def progress() -> AsyncIterator[Progress]:
            left = len(requests)
            while left:
                got = await heard.get()
                if got.id < 0:
                    raise ApiError(503, "the sampler has failed: see the server's log")
                left -= got.finish_reason is not None
                yield dataclasses.replace(got, id=places[got.id])

        try:
            yield progress()
        finally:
            unfinished = places.keys() & self._listeners.keys()
            for key in unfinished:
                del self._listeners[key]
            if unfinished:
                self._orders.put(set(unfinished))

    def _deliver(self, heard: list[Progress]) -> None:
        for progress in heard:
            listener = self._listeners.get(progress.id)
            if listener is None:
                continue  # cancelled meanwhile
            if progress.finish_reason is not None:
                del self._listeners[progress.id]
            listener.put_nowait(progress)

    def _fail(self) -> None:
        self._failed = True
        for listener in set(self._listeners.values()):
            listener.put_nowait(Progress(-1, [], None, None))
        self._listeners.clear()

    def _work(self) -> None:
        try:
            if self._mesh is not None:
                jax.set_mesh(self._mesh)
            limits = self.limits
            batch = self.sampler.batch(limits.prompt_tokens, limits.new_tokens, limits.slots, elastic=True)
            while True:
                for order in self._taken(wait=not batch.busy):
                    if order is None:
                        return
                    if isinstance(order, set):
                        batch.cancel(order)
                    else:
                        batch.submit(order)
                if heard := batch.step():
                    self._loop.call_soon_threadsafe(self._deliver, heard)
        except Exception:
            log.exception("the sampler has failed")
            self._loop.call_soon_threadsafe(self._fail)

    def _taken(self, wait: bool) -> Iterator[list[Request] | set[int] | None]:
        """The orders that are there; with `wait` at least one."""
        with contextlib.suppress(queue.Empty):
            if wait:
                yield self._orders.get()
            while True:
                yield self._orders.get_nowait()
