"""The host half of the sampler: which request is in which slot (continuous batching).

Requests wait in a queue. A slot that finishes is given to the next one while the others decode; a prompt that already
stands in some slot is copied from there and not run again, so that n samples of one state cost one prefill. Weights
come with each call: they are the trainer's own, and there is nothing to synchronise.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import logging

from mlagent_jax.models import Graph, Params
from mlagent_jax.parallelism import parts
from mlagent_jax.sampling import engine
from mlagent_jax.sampling.config import Completion, SamplerConfig


@dataclasses.dataclass(frozen=True)
class _Request:
    index: int  # in the order of the results
    prompt: tuple[int, ...]
    seed: int
    sample: int
    limit: int


class Sampler:
    """Samples completions of prompts; holds no weights and, between calls, no device memory."""

    def __init__(self, graph: Graph, config: SamplerConfig) -> None:
        self._graph = graph
        self._config = config
        self._seen: set[tuple[object, ...]] = set()

    @property
    def config(self) -> SamplerConfig:
        """What this sampler was made with."""
        return self._config

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        n: int = 1,
        *,
        params: Params,
        max_new_tokens: int | None = None,
    ) -> list[Completion]:
        """`n` completions of each prompt, as a list in the order of the prompts, samples of a prompt together.

        A completion follows from its prompt, its seed, the number of its sample and the weights: not from what else is
        sampled with it, but for rounding where two tokens tie.

        Args:
            prompts: Token ids, at least one each, at most the largest bucket.
            seeds: One a prompt, 64 bits of each count.
            n: Samples a prompt.
            params: The weights, in the tree of `models.create`, stacked.
            max_new_tokens: A lower limit than the config's, for this call.

        Raises:
            ValueError: For an empty or too long prompt, another number of seeds than of prompts, an n below 1, or a
                limit above the config's.
        """
        completions = dict(self.stream(prompts, seeds, n, params=params, max_new_tokens=max_new_tokens))
        return [completions[index] for index in range(len(prompts) * n)]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        n: int = 1,
        *,
        params: Params,
        max_new_tokens: int | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """As `sample`, yielding (place in its list, completion) as each is finished."""
        requests = self._requests(prompts, seeds, n, max_new_tokens)
        if not requests:
            return
        config = self._config
        length = max(config.bucket(len(prompt)) for prompt in prompts) + config.max_new_tokens
        held = engine.sampling_params(config.compute_dtype, params)
        state = self._timed(("empty", length), engine.empty_slots, self._graph, config, length, held)
        waiting = collections.deque(requests)
        running: dict[int, _Request] = {}
        resident: dict[int, tuple[int, ...]] = {}  # the prompt that stands in each slot, also of one that has finished
        while waiting or running:
            free = [slot for slot in range(config.slots) if slot not in running]
            if waiting and free:
                placed, new, copies = _place(waiting, free, resident)
                for rows in self._prefill_batches(new):
                    state = self._prefill(held, state, rows, length)
                starts = _starts(config.slots, placed, copies)
                state = self._timed(("start", length), engine.start_requests, self._graph, config, held, state, starts)
                running.update(placed)
            awaited = np.bool_(bool(waiting))
            state = self._timed(("decode", length), engine.decode, self._graph, config, held, state, awaited)
            yield from self._collect(state, running)

    def _requests(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], n: int, max_new_tokens: int | None
    ) -> list[_Request]:
        config = self._config
        limit = config.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= limit <= config.max_new_tokens:
            raise ValueError(f"max_new_tokens={limit} must be between 1 and the sampler's {config.max_new_tokens}")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one a prompt")
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        requests = []
        for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if not prompt:
                raise ValueError(f"prompt {place} is empty: a prompt needs at least one token")
            config.bucket(len(prompt))
            tokens = tuple(int(token) for token in prompt)
            requests += [_Request(place * n + sample, tokens, int(seed), sample, limit) for sample in range(n)]
        return requests

    def _prefill_batches(self, new: dict[int, tuple[int, ...]]) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """Rows (slot, prompt) of one bucket each, at most `prefill_rows`."""
        by_bucket: dict[int, list[tuple[int, tuple[int, ...]]]] = collections.defaultdict(list)
        for slot, prompt in new.items():
            by_bucket[self._config.bucket(len(prompt))].append((slot, prompt))
        for rows in by_bucket.values():
            for start in range(0, len(rows), self._config.prefill_rows):
                yield rows[start : start + self._config.prefill_rows]

    def _prefill(
        self, held: Params, state: engine.SlotState, rows: list[tuple[int, tuple[int, ...]]], length: int
    ) -> engine.SlotState:
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
        key = ("prefill", length, height, bucket)
        return self._timed(key, engine.prefill_prompts, self._graph, held, state, tokens, lengths, slots)

    def _collect(self, state: engine.SlotState, running: dict[int, _Request]) -> Iterator[tuple[int, Completion]]:
        """Take the completions of slots that have finished out of `running`."""
        active, counts, stopped = jax.device_get((state.active, state.counts, state.stopped))
        finished = [slot for slot in running if not active[slot]]
        if not finished:
            return
        tokens, log_probs = jax.device_get((state.tokens, state.log_probs))
        for slot in finished:
            count = counts[slot]
            reason = "stop" if stopped[slot] else "length"
            completion = Completion(tokens[slot, :count].tolist(), log_probs[slot, :count].copy(), reason)
            yield running.pop(slot).index, completion

    def _timed(self, key: tuple[object, ...], program, *args):  # noqa: ANN001, ANN002, ANN202 - as `program`
        """Run a program; its first run with a shape, which compiles it, is logged with its seconds."""
        if key in self._seen:
            return program(*args)
        self._seen.add(key)
        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        logging.info("sampler: first run of %s took %.2f s", " ".join(map(str, key)), time.perf_counter() - begin)
        return result


def _place(
    waiting: collections.deque[_Request], free: list[int], resident: dict[int, tuple[int, ...]]
) -> tuple[dict[int, _Request], dict[int, tuple[int, ...]], list[tuple[int, int]]]:
    """Give the next requests the free slots, one whose prompt already stands in a free slot that one.

    Updates `waiting`, `free` and `resident`.

    Returns:
        (requests by slot, prompts to prefill by slot, copies of prompts (from, to), to be made after the prefill)
    """
    placed: dict[int, _Request] = {}
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


def _starts(slots: int, placed: dict[int, _Request], copies: list[tuple[int, int]]) -> engine.Starts:
    def column(values: dict[int, int | bool], dtype: type) -> np.ndarray:
        out = np.zeros((slots,), dtype)
        for slot, value in values.items():
            out[slot] = value
        return out

    table = np.zeros((slots, 2), np.int32)
    table[: len(copies)] = np.reshape(copies, (-1, 2))
    return engine.Starts(
        starting=column(dict.fromkeys(placed, True), np.bool_),
        prompt_lengths=column({slot: len(request.prompt) for slot, request in placed.items()}, np.int32),
        limits=column({slot: request.limit for slot, request in placed.items()}, np.int32),
        seed_low=column({slot: request.seed & 0xFFFFFFFF for slot, request in placed.items()}, np.uint32),
        seed_high=column({slot: request.seed >> 32 & 0xFFFFFFFF for slot, request in placed.items()}, np.uint32),
        samples=column({slot: request.sample for slot, request in placed.items()}, np.int32),
        copies=table,
        copy_count=np.int32(len(copies)),
    )
