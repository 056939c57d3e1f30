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
import numpy as np

from mlagent_jax.sampling.batch import Batch
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
    seconds: float = 600.0
    """Of a request, from its arrival to its last token."""


@dataclasses.dataclass
class _UnderWay:
    """A request in the batch."""

    request: Request
    told: int = 0
    """Tokens that the client has."""
    seen: int = 0
    """Tokens that the batch has made; fewer than `told` where it is run again."""


def _failed(key: int, error: Exception) -> Progress:
    return Progress(key, [], np.zeros((0,), np.float32), None, f"the sampler failed on this request: {error}")


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

    def check_count(self, samples: int) -> None:
        """Whether one request may ask for so many samples.

        Raises:
          ApiError: It may not.
        """
        room = self.limits.slots + self.limits.waiting
        if samples > room:
            raise bad_request(f"{samples} samples in one request: this server takes {room} at once", "n")

    @contextlib.asynccontextmanager
    async def samples(self, requests: Sequence[Request]) -> AsyncIterator[AsyncIterator[Progress]]:
        """Progress of `requests` until all have finished; `Progress.id` counts them. Leaving early cancels them.

        Raises:
          ApiError: 429 where too many samples are open, 503 where the sampler has failed, 500 where a request has,
            504 where it took too long.
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
                continue  # cancelled meanwhile
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
            batch, under_way = self._batch(), {}
            while True:
                for order in self._taken(wait=not batch.busy):
                    if order is None:
                        return
                    if isinstance(order, set):
                        batch.cancel(order)
                        under_way = {key: each for key, each in under_way.items() if key not in order}
                    else:
                        for request in order:
                            under_way[request.id] = _UnderWay(request)
                        self._submit(batch, order, under_way)
                try:
                    self._tell(batch.step(), under_way)
                except Exception:
                    log.exception("the sampler has failed: all requests under way are run again, one by one")
                    batch = None  # its memory is needed
                    batch = self._run_again(under_way)
        except Exception:
            log.exception("the sampler has failed")
            self._loop.call_soon_threadsafe(self._fail)

    def _batch(self) -> Batch:
        limits = self.limits
        return self.sampler.batch(limits.prompt_tokens, limits.new_tokens, limits.slots, elastic=True)

    def _submit(self, batch: Batch, requests: Sequence[Request], under_way: dict[int, _UnderWay]) -> None:
        for request in requests:
            try:
                batch.submit([request])
            except Exception as error:
                self._tell([_failed(request.id, error)], under_way)

    def _run_again(self, under_way: dict[int, _UnderWay]) -> Batch:
        """Make a new batch, and each request that is under way alone: the one that fails again is to blame.

        A request draws the same tokens as before; those that its client has are not told twice.
        """
        batch = self._batch()
        for each in list(under_way.values()):
            each.seen = 0
            try:
                batch.submit([each.request])
                while batch.busy:
                    self._tell(batch.step(), under_way)
            except Exception as error:
                log.exception("a request has failed in the sampler")
                self._tell([_failed(each.request.id, error)], under_way)
                batch = None
                batch = self._batch()
        return batch

    def _tell(self, heard: list[Progress], under_way: dict[int, _UnderWay]) -> None:
        """Hand progress to the event loop, without the tokens that were told before."""
        fresh = []
        for progress in heard:
            each = under_way[progress.id]
            known = max(0, each.told - each.seen)
            each.seen += len(progress.token_ids)
            each.told = max(each.told, each.seen)
            if progress.finish_reason is not None or progress.error:
                del under_way[progress.id]
            tokens, log_probs = progress.token_ids[known:], progress.log_probs[known:]
            fresh.append(dataclasses.replace(progress, token_ids=tokens, log_probs=log_probs))
        if fresh:
            self._loop.call_soon_threadsafe(self._deliver, fresh)

    def _taken(self, wait: bool) -> Iterator[list[Request] | set[int] | None]:
        """The orders that are there; with `wait` at least one."""
        with contextlib.suppress(queue.Empty):
            if wait:
                yield self._orders.get()
            while True:
                yield self._orders.get_nowait()
