"""The host half of continuous batching: it assigns requests to slots and calls the programs of `sampling.engine`.

Requests wait in a queue, and may be submitted at any time. When a slot finishes, the next request gets it while the
other slots decode. A prompt that is in the cache is not run again: n samples of one prompt cost one prefill and one
row. If two prompts share a beginning, only the rest of the second one is run. A long prompt is run part by part, one
part between two calls of `decode`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mlagent_jax.models import Graph, Params
from mlagent_jax.parallelism import shard_count
from mlagent_jax.sampling import engine
from mlagent_jax.sampling.config import NOT_A_NUMBER, Progress, Request, SamplerConfig
from mlagent_jax.sampling.distribution import Distributions
from mlagent_jax.sampling.first_runs import FirstRuns
from mlagent_jax.sampling.rows import Prompt, Row, Rows
from mlagent_jax.sampling.stops import StopFinder
from mlagent_jax.sampling.weights import Preparation, Weights


@dataclasses.dataclass(eq=False)
class _Coming:
    """A prompt that is being written to a row, by parts or as a copy, with the requests that wait for it."""

    row: Row
    prompt: Prompt
    done: int = 0
    """Tokens in the row; while `source` is set, tokens that will be copied."""
    source: _Coming | None = None
    """Prompt whose row provides the first `done` tokens, once they are there."""
    placed: dict[int, Request] = dataclasses.field(default_factory=dict)
    """Waiting requests by slot; all start when the whole prompt is in `row`."""


class Batch:
    """Slots over a cache of prompts and a cache of completions, for use by one thread.

    Call `submit` at any time, and `step` while the batch is `busy`.

    Args:
        graph: The model.
        config: Shapes of the programs.
        params: The weights, in the tree of `models.create`, or prepared.
        longest_prompt: Maximum tokens of a prompt. It decides the capacity of prompt rows, `config.room`; a slot has
            a capacity of `config.max_new_tokens`.
        spellings: Bytes of each token by id; required for stop strings.
        run: Register of compiled programs, to share it with earlier batches; None: a new one.
        elastic: Whether programs have only as many slots as are needed, rounded up to a power of four, at most
            `config.slots`. Each size is compiled on first use. Without effect if a mesh splits the slots.
    """

    def __init__(
        self,
        graph: Graph,
        config: SamplerConfig,
        params: Params | Weights,
        longest_prompt: int,
        *,
        spellings: Sequence[bytes] | None = None,
        run: FirstRuns | None = None,
        elastic: bool = False,
    ) -> None:
        shards, devices = (shard_count(axis, graph.rules) for axis in ("slots", "batch"))
        # Prefill gives every device that it is split over the same number of rows.
        config = dataclasses.replace(config, prefill_rows=-(-config.prefill_rows // devices) * devices)
        self._sizes = _sizes(config.slots) if elastic and shards == 1 else (config.slots,)
        self._graph, self._config = graph, dataclasses.replace(config, slots=self._sizes[0])
        self._room = config.room(longest_prompt)
        self._rows = Rows(self._config, shards)
        self._run, self._spellings = run or FirstRuns(), spellings
        self._finders: dict[int, StopFinder] = {}  # by slot
        self._params = Preparation(config.compute_dtype)(params).params
        arguments = (graph, self._config, self._room, self._params)
        self._state = self._run(("empty", *self._shape), engine.empty_slots, *arguments)
        self._waiting: collections.deque[tuple[Request, Prompt]] = collections.deque()
        self._running: dict[int, Request] = {}  # by slot
        self._taken: dict[int, int] = {}  # number of tokens returned so far, by slot
        self._coming: list[_Coming] = []  # oldest first

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or in work."""
        return bool(self._waiting or self._running or self._coming)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Values that the shapes of all programs depend on: (slots, samples, room)."""
        return self._config.slots, self._config.samples, self._room

    @property
    def waiting(self) -> int:
        """Number of requests without a slot."""
        return len(self._waiting)

    def check(self, request: Request) -> None:
        """Check that this batch can serve `request`. A request that passes cannot disturb others.

        Raises:
            ValueError: The prompt is empty or too long, a number is out of range, or a stop string is unusable.
        """
        request.check(self._room, self._config.max_new_tokens, self._graph.config.vocab_size)
        if request.stop and self._spellings is None:
            raise ValueError(f"stop={request.stop} needs a tokenizer: this sampler knows token ids only")

    def submit(self, requests: Iterable[Request]) -> None:
        """Add requests at the end of the queue.

        Raises:
            ValueError: As in `check`; no request is added then.
        """
        new = list(requests)
        for request in new:
            self.check(request)
        self._waiting.extend((request, self._rows.prompt(request.prompt)) for request in new)

    def cancel(self, ids: set[int]) -> None:
        """Cancel requests by id, waiting or in work; unknown ids are ignored."""
        self._waiting = collections.deque(pair for pair in self._waiting if pair[0].id not in ids)
        for coming in self._coming:
            for slot in [slot for slot, request in coming.placed.items() if request.id in ids]:
                del coming.placed[slot]
                self._rows.leave(slot)
        for coming in reversed(list(self._coming)):  # a prompt stands after the one that it copies from
            if not coming.placed and all(other.source is not coming for other in self._coming):
                self._coming.remove(coming)
                coming.row.pinned = False
                self._rows.forget(coming.row)
        self._end([slot for slot, request in self._running.items() if request.id in ids])

    def _end(self, slots: list[int]) -> None:
        """Abandon the completions of slots, some of which may have ended already, and free the slots."""
        if slots:
            ending = np.zeros((self._config.slots,), bool)
            ending[slots] = True
            self._state = self._run(("end", *self._shape), engine.end_requests, self._state, ending)
        self._leave(slots)

    def _leave(self, slots: Iterable[int]) -> None:
        """Free slots, and zero spoiled prompt rows that no slot reads any more."""
        left = set()
        for slot in slots:
            for held in (self._running, self._taken, self._finders):
                if slot in held:
                    del held[slot]
            left.add(self._rows.leave(slot))
        self._clear([], [row for row in left if row.spoiled and not row.members])

    def step(self) -> list[Progress]:
        """Fill free slots, run the next part of each long prompt, and decode up to `steps_per_call` tokens per slot.

        Returns:
            The progress of each running request; an empty list if only parts of prompts were run.
        """
        self._fill()
        self._prefill_parts()
        if not self._running:
            return []
        taken = np.zeros((self._config.slots,), np.int32)
        for slot, count in self._taken.items():
            taken[slot] = count
        self._state, look = self._run(
            ("decode", *self._shape),
            *(engine.decode, self._graph, self._config, self._params, self._state),
            *(self._rows.groups(self._running), np.bool_(bool(self._waiting)), taken),
        )
        heard = list(self._read(look := jax.device_get(look)))
        self._spoil([slot for slot, progress in heard if progress.error])
        # The device does not know of stop strings and would continue these completions.
        self._end([slot for slot, progress in heard if progress.finish_reason and look.active[slot]])
        self._leave([slot for slot, progress in heard if progress.finish_reason and not look.active[slot]])
        return [progress for _, progress in heard]

    def _spoil(self, slots: list[int]) -> None:
        """Zero and free slots whose caches hold NaN or infinity, and keep new requests off their prompt rows."""
        for slot in slots:
            row = self._rows.row(slot)
            row.spoiled = True
            self._rows.forget(row)
        self._clear(slots, [])
        self._leave(slots)

    def _clear(self, slots: list[int], rows: list[Row]) -> None:
        """Zero the caches of slots and prompt rows."""
        if not slots and not rows:
            return
        of_slots, of_rows = np.zeros((self._config.slots,), bool), np.zeros((len(self._rows),), bool)
        of_slots[slots] = True
        for row in rows:
            of_rows[row.index], row.spoiled = True, False
        self._state = self._run(("clear", *self._shape), engine.clear_slots, self._state, of_slots, of_rows)

    def _resize(self) -> None:
        """Switch to the smallest size that holds all requests; the number of slots shrinks only if none is in use."""
        wanted = self._rows.used + len(self._waiting)
        slots = next((size for size in self._sizes if size >= wanted), self._sizes[-1])
        if slots == self._config.slots or not self._waiting or (slots < self._config.slots and self._rows.used):
            return
        config = dataclasses.replace(self._config, slots=slots)
        key = ("resize", *self._shape, slots)
        self._state = self._run(key, engine.resize_slots, self._graph, config, self._state)
        self._config = config
        self._rows.resize(config)

    def _fill(self) -> None:
        """Assign slots and rows to waiting requests; run short prompts, copy shared beginnings, begin long prompts."""
        self._resize()
        placed: dict[int, Request] = {}
        new: list[Row] = []
        while self._waiting and (taken := self._rows.take(self._waiting[0][1])) is not None:
            slot, row, is_new = taken
            placed[slot] = self._waiting.popleft()[0]
            new += [row] if is_new else []
        whole, copies = self._bring(new)
        for bucket, rows in self._prefill_batches(whole):
            self._prefill([(row, row.prompt.tokens) for row in rows], bucket)
        self._copy(copies)
        on_their_way = {coming.row: coming for coming in self._coming}
        for slot in list(placed):
            if (coming := on_their_way.get(self._rows.row(slot))) is not None:
                coming.placed[slot] = placed.pop(slot)
        self._start(placed)

    def _bring(self, new: list[Row]) -> tuple[list[Row], list[tuple[Row, Row]]]:
        """Decide how the prompts of `new` rows are written.

        Returns:
            Rows whose prompts are run whole, and copies (from, to) of beginnings that can be made now. All prompts that
            are not run whole are added to those that are coming.
        """
        on_their_way = {coming.row: coming for coming in self._coming}
        whole, copies = [], []
        for row in new:
            holder, shared = self._rows.longest_shared(row)
            self._rows.show(row)
            if not shared and not self._config.is_long(row.length):
                whole.append(row)
                continue
            coming = _Coming(row, row.prompt, shared, on_their_way.get(holder))
            row.pinned = True
            on_their_way[row] = coming
            self._coming.append(coming)
            if shared and coming.source is None:
                copies.append((holder, row))
        return whole, copies

    def _copy(self, copies: list[tuple[Row, Row]]) -> None:
        if copies:
            table = np.zeros((len(self._rows), 2), np.int32)
            table[: len(copies)] = [(source.index, target.index) for source, target in copies]
            key = ("copy", *self._shape)
            self._state = self._run(key, engine.copy_prompts, self._state, table, np.int32(len(copies)))

    def _start(self, placed: dict[int, Request]) -> None:
        """Begin requests, given by slot, whose prompts are in their rows."""
        if not placed:
            return
        self._state = self._run(
            ("start", *self._shape),
            *(engine.start_requests, self._graph, self._config, self._params, self._state, self._starts(placed)),
        )
        self._running.update(placed)
        self._taken.update(dict.fromkeys(placed, 0))
        stopping = {slot: request.stop for slot, request in placed.items() if request.stop}
        self._finders.update({slot: StopFinder(self._spellings, stop) for slot, stop in stopping.items()})

    def _prefill_parts(self) -> None:
        """Run the next part of each coming prompt, make copies that became possible, and start complete prompts."""
        by_bucket: dict[int, list[_Coming]] = collections.defaultdict(list)
        for coming in self._coming:
            if coming.source is None and coming.done < len(coming.prompt):
                by_bucket[self._config.bucket(len(coming.prompt) - coming.done)].append(coming)
        for bucket, group in by_bucket.items():
            for first in range(0, len(group), self._config.prefill_rows):
                rows = group[first : first + self._config.prefill_rows]
                # The padded part must end within the row. It may thus repeat tokens that are in the row already.
                starts = [min(each.done, self._room - bucket) for each in rows]
                for each, start in zip(rows, starts, strict=True):
                    each.done = min(start + bucket, len(each.prompt))
                cut = [
                    (each.row, each.prompt.tokens[start : each.done]) for each, start in zip(rows, starts, strict=True)
                ]
                self._prefill(cut, bucket, starts)
        sources = {
            each: each.source
            for each in self._coming
            if each.source is not None and each.source.source is None and each.source.done >= each.done
        }
        self._copy([(source.row, each.row) for each, source in sources.items()])
        for each in sources:
            each.source = None
        for coming in [each for each in self._coming if each.source is None and each.done == len(each.prompt)]:
            self._coming.remove(coming)
            coming.row.pinned = False
            self._start(coming.placed)

    def _prefill_batches(self, new: list[Row]) -> Iterator[tuple[int, list[Row]]]:
        """Yield (bucket, rows with prompts of that bucket), at most `prefill_rows` at a time."""
        by_bucket: dict[int, list[Row]] = collections.defaultdict(list)
        for row in new:
            by_bucket[self._config.bucket(row.length)].append(row)
        for bucket, rows in by_bucket.items():
            for start in range(0, len(rows), self._config.prefill_rows):
                yield bucket, rows[start : start + self._config.prefill_rows]

    def _prefill(self, prompts: list[tuple[Row, np.ndarray]], bucket: int, starts: list[int] | None = None) -> None:
        """Run prompts of one bucket, given as (row, tokens); with `starts`, parts that begin at these positions."""
        config = self._config
        height = config.rows(len(prompts))
        devices = shard_count("batch", self._graph.rules)
        height = -(-height // devices) * devices  # an equal number of rows per device
        tokens = np.full((height, bucket), config.pad_id, np.int32)
        lengths = np.ones((height,), np.int32)
        rows = np.full((height,), len(self._rows), np.int32)
        for place, (row, prompt) in enumerate(prompts):
            tokens[place, : len(prompt)], lengths[place], rows[place] = prompt, len(prompt), row.index
        common = (self._graph, self._params, self._state, tokens)
        shape = (*self._shape, height, bucket)
        if starts is None:
            self._state = self._run(("prefill", *shape), engine.prefill_prompts, *common, lengths, rows)
        else:
            places = np.zeros((height,), np.int32)
            places[: len(starts)] = starts
            self._state = self._run(("prefill-part", *shape), engine.prefill_parts, *common, places, lengths, rows)

    def _starts(self, placed: dict[int, Request]) -> engine.Starts:
        slots = self._config.slots

        def column(value: Callable[[Request], Any], dtype: type) -> np.ndarray:
            out = np.zeros((slots,), dtype)
            for slot, request in placed.items():
                out[slot] = value(request)
            return out

        rows = np.zeros((slots,), np.int32)
        for slot in placed:
            rows[slot] = self._rows.row(slot).index
        return engine.Starts(
            starting=column(lambda request: True, np.bool_),
            rows=rows,
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
        )

    def _read(self, look: engine.Look) -> Iterator[tuple[int, Progress]]:
        """Yield (slot, progress of its request) from the values that `decode` returned."""
        for slot, request in list(self._running.items()):
            new = slice(0, int(look.counts[slot]) - self._taken[slot])
            self._taken[slot] = int(look.counts[slot])
            reason = None
            if not look.active[slot]:
                reason = "stop" if look.stopped[slot] else "length"
            tokens, log_probs = look.tokens[slot, new].tolist(), look.log_probs[slot, new].copy()
            if slot in self._finders and (end := self._finders[slot].feed(tokens)) is not None:
                tokens, log_probs, reason = tokens[:end], log_probs[:end], "stop"
            if np.isfinite(log_probs).all():
                yield slot, Progress(request.id, tokens, log_probs, reason)
            else:
                yield slot, Progress(request.id, [], log_probs[:0], None, NOT_A_NUMBER)


def _sizes(slots: int) -> tuple[int, ...]:
    """Return the numbers of slots that programs are compiled for, ascending: powers of four, and `slots`."""
    smaller = (4**power for power in range(slots.bit_length()))
    return (*(size for size in smaller if size < slots), slots)
