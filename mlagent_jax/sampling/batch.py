"""The host half of continuous batching: which request is in which slot.

Requests wait in a queue, and may join at any time. A slot that finishes is given to the next one while the others
decode; a prompt that already stands in some slot is copied from there and not run again, so that n samples of one state
cost one prefill.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from mlagent_jax.models import Graph, Params
from mlagent_jax.parallelism import parts
from mlagent_jax.sampling import engine
from mlagent_jax.sampling.config import Progress, Request, SamplerConfig
from mlagent_jax.sampling.distribution import Distributions
from mlagent_jax.sampling.stops import Spellings, StopSets


class FirstRuns:
    """Runs programs, and logs each one's first run with a shape, which compiles it. Shared by the batches of a sampler.

    Attributes:
        seconds: what those first runs took in all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._seen: set[tuple[object, ...]] = set()

    def __call__(self, key: tuple[object, ...], program: Callable[..., Any], *args: Any) -> Any:
        """`program(*args)`; `key` names the program and whatever its shapes follow from."""
        if key in self._seen:
            return program(*args)
        self._seen.add(key)
        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        seconds = time.perf_counter() - begin
        self.seconds += seconds
        logging.info("sampler: first run of %s took %.2f s", " ".join(map(str, key)), seconds)
        return result


class Batch:
    """Slots over one cache, for as long as it lives; `submit` at any time, `step` while `busy`. Not thread-safe.

    Args:
        graph: The model.
        config: The programs' shapes.
        params: The weights, in the tree of `models.create`, stacked.
        longest_prompt: In tokens; the cache holds its bucket and `config.max_new_tokens` more in each slot.
        spellings: What tokens spell, where requests have stop strings.
        run: To share what is known of earlier batches' compilations.

    Raises:
        ValueError: Where no bucket holds `longest_prompt`.
    """

    def __init__(
        self,
        graph: Graph,
        config: SamplerConfig,
        params: Params,
        longest_prompt: int,
        *,
        spellings: Spellings | None = None,
        run: FirstRuns | None = None,
    ) -> None:
        self._graph, self._config = graph, config
        self._bucket = config.bucket(longest_prompt)
        self._length = self._bucket + config.max_new_tokens
        self._run = run or FirstRuns()
        self._stops = StopSets(spellings)
        self._params = engine.sampling_params(config.compute_dtype, params)
        self._state = self._run(("empty", self._length), engine.empty_slots, graph, config, self._length, self._params)
        self._waiting: collections.deque[Request] = collections.deque()
        self._running: dict[int, Request] = {}  # by slot
        self._taken: dict[int, int] = {}  # tokens that were handed out, by slot
        self._resident: dict[int, tuple[int, ...]] = {}  # the prompt that stands in each slot, also of a finished one

    @property
    def busy(self) -> bool:
        """Whether a completion is wanted or being made."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    def check(self, request: Request) -> None:
        """Whether `request` can be made here.

        Raises:
            ValueError: For an empty or too long prompt, or a limit out of range.
        """
        if not request.prompt:
            raise ValueError("the prompt is empty: it needs at least one token")
        if self._config.bucket(len(request.prompt)) > self._bucket:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens is longer than the {self._bucket} that each slot has room "
                "for: shorten it"
            )
        if not 1 <= request.max_new_tokens <= self._config.max_new_tokens:
            raise ValueError(
                f"max_new_tokens={request.max_new_tokens} must be between 1 and the sampler's "
                f"{self._config.max_new_tokens}"
            )

    def submit(self, requests: Iterable[Request]) -> None:
        """Add requests at the end of the queue.

        Raises:
            ValueError: As `check`; then none is added.
        """
        new = list(requests)
        for request in new:
            self.check(request)
        self._waiting.extend(new)

    def cancel(self, ids: set[int]) -> None:
        """Forget requests, wherever they are; unknown ones are ignored."""
        self._waiting = collections.deque(request for request in self._waiting if request.id not in ids)
        slots = [slot for slot, request in self._running.items() if request.id in ids]
        if slots:
            ending = np.zeros((self._config.slots,), bool)
            ending[slots] = True
            self._state = self._run(("end", self._length), engine.end_requests, self._state, ending)
        for slot in slots:
            del self._running[slot], self._taken[slot]

    def step(self) -> list[Progress]:
        """Fill free slots, decode up to `steps_per_call` tokens a slot, and tell what each request got."""
        self._fill()
        if not self._running:
            return []
        taken = np.zeros((self._config.slots,), np.int32)
        for slot, count in self._taken.items():
            taken[slot] = count
        self._state, look = self._run(
            ("decode", self._length, self._stops.size),
            *(engine.decode, self._graph, self._config, self._params, self._state),
            *(self._stops.table, np.bool_(bool(self._waiting)), taken),
        )
        return list(self._read(jax.device_get(look)))

    def _fill(self) -> None:
        free = [slot for slot in range(self._config.slots) if slot not in self._running]
        if not self._waiting or not free:
            return
        placed, new, copies = _place(self._waiting, free, self._resident)
        for rows in self._prefill_batches(new):
            self._prefill(rows)
        starts = self._starts(placed, copies)
        self._state = self._run(
            ("start", self._length, self._stops.size),
            *(engine.start_requests, self._graph, self._config, self._params, self._state, self._stops.table, starts),
        )
        self._running.update(placed)
        self._taken.update(dict.fromkeys(placed, 0))

    def _prefill_batches(self, new: dict[int, tuple[int, ...]]) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """Rows (slot, prompt) of one bucket each, at most `prefill_rows`."""
        by_bucket: dict[int, list[tuple[int, tuple[int, ...]]]] = collections.defaultdict(list)
        for slot, prompt in new.items():
            by_bucket[self._config.bucket(len(prompt))].append((slot, prompt))
        for rows in by_bucket.values():
            for start in range(0, len(rows), self._config.prefill_rows):
                yield rows[start : start + self._config.prefill_rows]

    def _prefill(self, rows: list[tuple[int, tuple[int, ...]]]) -> None:
        config = self._config
        height = 1 if len(rows) == 1 else config.prefill_rows
        devices = parts("batch", self._graph.rules)
        height = -(-height // devices) * devices  # each device that takes rows takes as many
        bucket = config.bucket(len(rows[0][1]))
        tokens = np.full((height, bucket), config.pad_id, np.int32)
        lengths = np.ones((height,), np.int32)
        slots = np.full((height,), config.slots, np.int32)
        for row, (slot, prompt) in enumerate(rows):
            tokens[row, : len(prompt)], lengths[row], slots[row] = prompt, len(prompt), slot
        self._state = self._run(
            ("prefill", self._length, height, bucket),
            *(engine.prefill_prompts, self._graph, self._params, self._state, tokens, lengths, slots),
        )

    def _starts(self, placed: dict[int, Request], copies: list[tuple[int, int]]) -> engine.Starts:
        slots = self._config.slots

        def column(value: Callable[[Request], Any], dtype: type) -> np.ndarray:
            out = np.zeros((slots,), dtype)
            for slot, request in placed.items():
                out[slot] = value(request)
            return out

        in_use = [request.stop for request in (*self._running.values(), *placed.values())]
        table = np.zeros((slots, 2), np.int32)
        table[: len(copies)] = np.reshape(copies, (-1, 2))
        return engine.Starts(
            starting=column(lambda request: True, np.bool_),
            prompt_lengths=column(lambda request: len(request.prompt), np.int32),
            limits=column(lambda request: request.max_new_tokens, np.int32),
            seed_low=column(lambda request: request.seed & 0xFFFFFFFF, np.uint32),
            seed_high=column(lambda request: request.seed >> 32 & 0xFFFFFFFF, np.uint32),
            samples=column(lambda request: request.sample, np.int32),
            distributions=Distributions(
                temperature=column(lambda request: request.distribution.temperature, np.float32),
                top_k=column(lambda request: request.distribution.top_k, np.int32),
                top_p=column(lambda request: request.distribution.top_p, np.float32),
                min_p=column(lambda request: request.distribution.min_p, np.float32),
            ),
            stop_nodes=column(lambda request: self._stops.root(request.stop, in_use), np.int32),
            copies=table,
            copy_count=np.int32(len(copies)),
        )

    def _read(self, look: engine.Look) -> Iterator[Progress]:
        """What each running request got; those that have finished leave."""
        for slot, request in list(self._running.items()):
            new = slice(0, int(look.counts[slot]) - self._taken[slot])
            self._taken[slot] = int(look.counts[slot])
            reason = None
            if not look.active[slot]:
                reason = "stop" if look.stopped[slot] else "length"
                del self._running[slot], self._taken[slot]
            yield Progress(request.id, look.tokens[slot, new].tolist(), look.log_probs[slot, new].copy(), reason)


def _place(
    waiting: collections.deque[Request], free: list[int], resident: dict[int, tuple[int, ...]]
) -> tuple[dict[int, Request], dict[int, tuple[int, ...]], list[tuple[int, int]]]:
    """Give the next requests the free slots, one whose prompt already stands in a free slot that one.

    Updates `waiting`, `free` and `resident`.

    Returns:
        (requests by slot, prompts to prefill by slot, copies of prompts (from, to), to be made after the prefill)
    """
    placed: dict[int, Request] = {}
    new: dict[int, tuple[int, ...]] = {}
    copies: list[tuple[int, int]] = []
    while waiting and free:
        request = waiting.popleft()
        holders = [slot for slot, prompt in resident.items() if prompt == request.prompt]
        slot = next((slot for slot in holders if slot in free), free[0])
        free.remove(slot)
        if not holders:
            new[slot] = request.prompt
        elif slot not in holders:
            copies.append((holders[0], slot))
        resident[slot] = request.prompt
        placed[slot] = request
    return placed, new, copies
