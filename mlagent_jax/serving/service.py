"""The batch that all requests share, on a thread of its own. Requests come from an asyncio loop; answers return there.

This module decides on admission: at most `slots + waiting` samples may be open.
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
import numpy as np

from mlagent_jax.sampling.batch import Batch
from mlagent_jax.sampling.config import Progress, Request
from mlagent_jax.sampling.sampler import Sampler
from mlagent_jax.serving.errors import ApiError, bad_request

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server."""

    prompt_tokens: int
    """Maximum tokens per prompt."""
    new_tokens: int
    """Maximum tokens per completion."""
    slots: int
    """Number of sequences decoded concurrently."""
    waiting: int
    """Maximum samples that wait for a slot; more are refused with status 429."""
    seconds: float = 600.0
    """Maximum seconds per request, from its arrival to its last token."""


@dataclasses.dataclass
class _InFlight:
    """A request in the batch."""

    request: Request
    told: int = 0
    """Number of tokens that the client has."""
    seen: int = 0
    """Number of tokens that the batch has made; fewer than `told` if the request is run again."""


def _failed(key: int, error: Exception) -> Progress:
    return Progress(key, [], np.zeros((0,), np.float32), None, f"the sampler failed on this request: {error}")


class Service:
    """Sampler behind an asyncio interface; `open` it on the loop that calls it.

    Args:
      sampler: Model and tokenizer.
      limits: Limits of admission.
      mesh: Devices of the model; None: one device.
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
        """Serve within the context; requests that are open at its end are dropped."""
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
        """Return whether the sampler runs."""
        return self._loop is not None and not self._failed

    @property
    def open_samples(self) -> int:
        """Return the number of unfinished samples."""
        return len(self._listeners)

    def check_count(self, samples: int) -> None:
        """Check the number of samples in one request.

        Raises:
          ApiError: It exceeds what the server takes.
        """
        room = self.limits.slots + self.limits.waiting
        if samples > room:
            raise bad_request(f"{samples} samples in one request: this server takes {room} at once", "n")

    @contextlib.asynccontextmanager
    async def samples(self, requests: Sequence[Request]) -> AsyncIterator[AsyncIterator[Progress]]:
        """Yield the progress of `requests` until all have finished; `Progress.id` is their index. Leaving the context
        early cancels them.

        Raises:
          ApiError: 429: too many samples are open; 503: the sampler has failed; 500: a request has failed; 504: it took
            too long.
        """
        room = self.limits.slots + self.limits.waiting
        if not self.healthy:
            raise ApiError(503, "the sampler has stopped: see the server's log, and start it again")
        self.check_count(len(requests))
        if self.open_samples + len(requests) > room:
            raise ApiError(429, f"{self.open_samples} samples are open and {room} may be: try again later")
        places = dict(zip(self._ids, range(len(requests)), strict=False))
        heard: asyncio.Queue[Progress] = asyncio.Queue()
        self._listeners.update(dict.fromkeys(places, heard))
        self._orders.put([dataclasses.replace(request, id=key) for key, request in zip(places, requests, strict=True)])

        end = self._loop.time() + self.limits.seconds

        async def progress() -> AsyncIterator[Progress]:
            left = len(requests)
            while left:
                try:
                    got = await asyncio.wait_for(heard.get(), end - self._loop.time())
                except TimeoutError:
                    raise ApiError(504, f"the answer takes longer than {self.limits.seconds:g} seconds") from None
                if got.id < 0:
                    raise ApiError(503, "the sampler has failed: see the server's log")
                if got.error:
                    raise ApiError(500, got.error)
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
                continue  # Cancelled meanwhile.
            if progress.finish_reason is not None or progress.error:
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
            batch, in_flight = self._batch(), {}
            while True:
                for order in self._taken(wait=not batch.busy):
                    if order is None:
                        return
                    if isinstance(order, set):
                        batch.cancel(order)
                        in_flight = {key: each for key, each in in_flight.items() if key not in order}
                    else:
                        for request in order:
                            in_flight[request.id] = _InFlight(request)
                        self._submit(batch, order, in_flight)
                try:
                    self._tell(batch.step(), in_flight)
                except Exception:
                    log.exception("the sampler has failed: all requests in flight are run again, one by one")
                    batch = None  # Its memory is needed.
                    batch = self._run_again(in_flight)
        except Exception:
            log.exception("the sampler has failed")
            self._loop.call_soon_threadsafe(self._fail)

    def _batch(self) -> Batch:
        limits = self.limits
        return self.sampler.batch(limits.prompt_tokens, limits.new_tokens, limits.slots, elastic=True)

    def _submit(self, batch: Batch, requests: Sequence[Request], in_flight: dict[int, _InFlight]) -> None:
        for request in requests:
            try:
                batch.submit([request])
            except Exception as error:
                self._tell([_failed(request.id, error)], in_flight)

    def _run_again(self, in_flight: dict[int, _InFlight]) -> Batch:
        """Make a new batch, and run each request in flight alone: the one that fails again is the cause.

        A request draws the same tokens as before; tokens that its client has are not sent twice.
        """
        batch = self._batch()
        for each in list(in_flight.values()):
            each.seen = 0
            try:
                batch.submit([each.request])
                while batch.busy:
                    self._tell(batch.step(), in_flight)
            except Exception as error:
                log.exception("a request has failed in the sampler")
                self._tell([_failed(each.request.id, error)], in_flight)
                batch = None
                batch = self._batch()
        return batch

    def _tell(self, heard: list[Progress], in_flight: dict[int, _InFlight]) -> None:
        """Pass progress to the event loop, without the tokens that were sent before."""
        fresh = []
        for progress in heard:
            each = in_flight[progress.id]
            known = max(0, each.told - each.seen)
            each.seen += len(progress.token_ids)
            each.told = max(each.told, each.seen)
            if progress.finish_reason is not None or progress.error:
                del in_flight[progress.id]
            tokens, log_probs = progress.token_ids[known:], progress.log_probs[known:]
            fresh.append(dataclasses.replace(progress, token_ids=tokens, log_probs=log_probs))
        if fresh:
            self._loop.call_soon_threadsafe(self._deliver, fresh)

    def _taken(self, wait: bool) -> Iterator[list[Request] | set[int] | None]:
        """Yield the waiting orders; with `wait`, at least one."""
        with contextlib.suppress(queue.Empty):
            if wait:
                yield self._orders.get()
            while True:
                yield self._orders.get_nowait()
