"""The host half of continuous batching: which request is in which slot.

Requests wait in a queue, and may join at any time. A slot that finishes is given to the next one while the others
decode; a prompt that already stands in some slot is copied from there and not run again, so that n samples of one state
cost one prefill, and of a prompt that begins as another one only the rest is run. Of a long prompt one part is run
between two looks at the others, which decode meanwhile.
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
from mlagent_jax.sampling.stops import StopFinder
from mlagent_jax.sampling.weights import Preparation, Weights


@dataclasses.dataclass(eq=False)
class _Coming:
    """A prompt on its way into a slot part by part, and who waits for it."""

    slot: int
    prompt: tuple[int, ...]
    done: int = 0
    """Tokens that stand there already, or will when they are copied."""
    source: _Coming | None = None
    """From whose slot the first `done` tokens are copied as soon as they stand there."""
    placed: dict[int, Request] = dataclasses.field(default_factory=dict)
    """Requests with this prompt by their slots; they start together when all of it stands in `slot`."""


class Batch:
    """Slots over one cache, for as long as it lives; `submit` at any time, `step` while `busy`. Not thread-safe.

    Args:
        graph: The model.
        config: The programs' shapes.
        params: The weights, in the tree of `models.create`, or prepared.
        longest_prompt: In tokens; the cache holds its `room` and `config.max_new_tokens` more in each slot.
        spellings: Bytes of each token by id, where requests have stop strings.
        run: To share what is known of earlier batches' compilations.
        elastic: Whether programs are of the slots in use, a power of four of them, and not of all. Each size is a
            compilation when it is first needed.
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
        self._sizes = _sizes(config.slots, shard_count("slots", graph.rules)) if elastic else (config.slots,)
        self._graph, self._config = graph, dataclasses.replace(config, slots=self._sizes[0])
        self._room = config.room(longest_prompt)
        self._length = self._room + config.max_new_tokens
        self._run, self._spellings = run or FirstRuns(), spellings
        self._finders: dict[int, StopFinder] = {}  # by slot
        self._params = Preparation(config.compute_dtype)(params).params
        arguments = (graph, self._config, self._length, self._params)
        self._state = self._run(("empty", *self._shape), engine.empty_slots, *arguments)
        self._waiting: collections.deque[Request] = collections.deque()
        self._running: dict[int, Request] = {}  # by slot
        self._taken: dict[int, int] = {}  # tokens that were handed out, by slot
        self._resident: dict[int, tuple[int, ...]] = {}  # the prompt that stands in each slot, also of a finished one
        self._coming: list[_Coming] = []  # oldest first

    @property
    def busy(self) -> bool:
        """Whether a completion is wanted or being made."""
        return bool(self._waiting or self._running or self._coming)

    @property
    def _shape(self) -> tuple[int, int]:
        """(slots, length): what every program's shapes follow from."""
        return self._config.slots, self._length

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    def check(self, request: Request) -> None:
        """Whether `request` can be made here: what passes cannot fail among the others.

        Raises:
            ValueError: For an empty or too long prompt, a number out of range, or an unusable stop string.
        """
        request.check(self._room, self._config.max_new_tokens, self._graph.config.vocab_size)
        if request.stop and self._spellings is None:
            raise ValueError(f"stop={request.stop} needs a tokenizer: this sampler knows token ids only")

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
        for coming in self._coming:
            for slot in [slot for slot, request in coming.placed.items() if request.id in ids]:
                del coming.placed[slot]
                if slot != coming.slot:
                    del self._resident[slot]  # its copy was to be made
        for coming in reversed(list(self._coming)):  # those that copy from others stand after them
            if not coming.placed and all(other.source is not coming for other in self._coming):
                self._coming.remove(coming)
                del self._resident[coming.slot]
        self._end([slot for slot, request in self._running.items() if request.id in ids])

    def _end(self, slots: list[int]) -> None:
        """Give up the completions of slots, some of which may have ended already."""
        if slots:
            ending = np.zeros((self._config.slots,), bool)
            ending[slots] = True
            self._state = self._run(("end", *self._shape), engine.end_requests, self._state, ending)
        self._leave(slots)

    def _leave(self, slots: Iterable[int]) -> None:
        for slot in slots:
            for held in (self._running, self._taken, self._finders):
                held.pop(slot, None)

    def step(self) -> list[Progress]:
        """Fill free slots, run a part of each long prompt, decode up to `steps_per_call` tokens a slot, and tell what
        each request got: nothing, while there are parts of prompts alone."""
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
            *(np.bool_(bool(self._waiting)), taken),
        )
        heard = list(self._read(look := jax.device_get(look)))
        self._clear([slot for slot, progress in heard if progress.error])
        # The device goes on with what a stop string has ended.
        self._end([slot for slot, progress in heard if progress.finish_reason and look.active[slot]])
        self._leave(slot for slot, progress in heard if progress.finish_reason)
        return [progress for _, progress in heard]

    def _clear(self, spoiled: list[int]) -> None:
        """Free slots whose contents are not numbers."""
        if not spoiled:
            return
        clearing = np.zeros((self._config.slots,), bool)
        clearing[spoiled] = True
        self._state = self._run(("clear", *self._shape), engine.clear_slots, self._state, clearing)
        self._leave(spoiled)
        for slot in spoiled:
            self._resident.pop(slot, None)

    def _resize(self) -> None:
        """Take the smallest size that has room for all that is wanted; a smaller one than now where nothing runs."""
        used = self._used()
        wanted = len(used) + len(self._waiting)
        slots = next((size for size in self._sizes if size >= wanted), self._sizes[-1])
        if slots == self._config.slots or not self._waiting or (slots < self._config.slots and used):
            return
        key = ("resize", *self._shape, slots)
        self._state = self._run(key, engine.resize_slots, self._graph, slots, self._state)
        self._config = dataclasses.replace(self._config, slots=slots)
        self._resident = {slot: prompt for slot, prompt in self._resident.items() if slot < slots}

    def _used(self) -> set[int]:
        """Slots that are not free."""
        return {*self._running, *(slot for coming in self._coming for slot in (coming.slot, *coming.placed))}

    def _fill(self) -> None:
        self._resize()
        taken = self._used()
        free = [slot for slot in range(self._config.slots) if slot not in taken]
        if not self._waiting or not free:
            return
        placed, new, copies = _place(self._waiting, free, self._resident)
        begun = self._take_parts(new, {target for _, target in copies})
        for coming in self._coming:
            held_back = [slot for slot, request in placed.items() if request.prompt == coming.prompt]
            coming.placed |= {slot: placed.pop(slot) for slot in held_back}
        for bucket, rows in self._prefill_batches(new):
            self._prefill(rows, bucket)
        self._copy(begun)
        self._start(placed, [pair for pair in copies if pair[1] in placed])

    def _take_parts(self, new: dict[int, tuple[int, ...]], empty: set[int]) -> list[tuple[int, int]]:
        """Move the prompts that are to be run in parts from `new`, by slot, to those that are coming.

        `empty` slots do not hold yet what is to stand in them. Returns copies (from, to) of what prompts begin with.
        """
        on_their_way = {coming.slot: coming for coming in self._coming}
        empty = empty | {slot for coming in self._coming for slot in coming.placed if slot != coming.slot}
        holders = {s: prompt for s, prompt in self._resident.items() if s not in empty and s not in new}
        copies: list[tuple[int, int]] = []
        for slot, prompt in list(new.items()):
            holder, shared = self._longest_shared(prompt, holders)
            if shared or self._config.is_long(len(prompt)):
                del new[slot]
                source = on_their_way.get(holder) if shared else None
                on_their_way[slot] = _Coming(slot, prompt, shared, source)
                self._coming.append(on_their_way[slot])
                if shared and source is None:
                    copies.append((holder, slot))
            holders[slot] = prompt
        return copies

    def _longest_shared(self, prompt: tuple[int, ...], holders: dict[int, tuple[int, ...]]) -> tuple[int, int]:
        """(slot, tokens) of the longest beginning of `prompt` that is worth copying; 0 tokens where there is none."""
        least = self._config.shared_prefix
        if not least or len(prompt) <= least:
            return 0, 0
        best = 0, 0
        for slot, held in holders.items():
            if held[:least] == prompt[:least]:
                size = min(len(held), len(prompt) - 1)  # of the last token the state is needed
                differing = np.not_equal(held[:size], prompt[:size])
                shared = int(differing.argmax()) if differing.any() else size
                best = max(best, (slot, shared), key=lambda pair: pair[1])
        return best

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        if copies:
            table = np.zeros((self._config.slots, 2), np.int32)
            table[: len(copies)] = copies
            key = ("copy", *self._shape)
            self._state = self._run(key, engine.copy_prompts, self._state, table, np.int32(len(copies)))

    def _start(self, placed: dict[int, Request], copies: list[tuple[int, int]]) -> None:
        """Begin the requests, by slot, whose prompts stand there or are copied from where they do."""
        if not placed:
            return
        starts = self._starts(placed, copies)
        self._state = self._run(
            ("start", *self._shape),
            *(engine.start_requests, self._graph, self._config, self._params, self._state, starts),
        )
        self._running.update(placed)
        self._taken.update(dict.fromkeys(placed, 0))
        stopping = {slot: request.stop for slot, request in placed.items() if request.stop}
        self._finders.update({slot: StopFinder(self._spellings, stop) for slot, stop in stopping.items()})

    def _prefill_parts(self) -> None:
        """Run the next part of each prompt that is coming, and start what waits for those that are complete."""
        by_bucket: dict[int, list[_Coming]] = collections.defaultdict(list)
        for coming in self._coming:
            if coming.source is None:
                by_bucket[self._config.bucket(len(coming.prompt) - coming.done)].append(coming)
        for bucket, group in by_bucket.items():
            for first in range(0, len(group), self._config.prefill_rows):
                rows = group[first : first + self._config.prefill_rows]
                # A part ends within the slot, padding included: it may begin with some tokens that stand there already.
                starts = [min(each.done, self._length - bucket) for each in rows]
                for each, start in zip(rows, starts, strict=True):
                    each.done = min(start + bucket, len(each.prompt))
                cut = [(each.slot, each.prompt[start : each.done]) for each, start in zip(rows, starts, strict=True)]
                self._prefill(cut, bucket, starts)
        sources = {
            each: each.source
            for each in self._coming
            if each.source is not None and each.source.source is None and each.source.done >= each.done
        }
        self._copy([(source.slot, each.slot) for each, source in sources.items()])
        for each in sources:
            each.source = None
        for coming in [coming for coming in self._coming if coming.done == len(coming.prompt)]:
            self._coming.remove(coming)
            self._start(coming.placed, [(coming.slot, slot) for slot in coming.placed if slot != coming.slot])

    def _prefill_batches(
        self, new: dict[int, tuple[int, ...]]
    ) -> Iterator[tuple[int, list[tuple[int, tuple[int, ...]]]]]:
        """(bucket, rows (slot, prompt) of it, at most `prefill_rows`)."""
        by_bucket: dict[int, list[tuple[int, tuple[int, ...]]]] = collections.defaultdict(list)
        for slot, prompt in new.items():
            by_bucket[self._config.bucket(len(prompt))].append((slot, prompt))
        for bucket, rows in by_bucket.items():
            for start in range(0, len(rows), self._config.prefill_rows):
                yield bucket, rows[start : start + self._config.prefill_rows]

    def _prefill(self, rows: list[tuple[int, tuple[int, ...]]], bucket: int, starts: list[int] | None = None) -> None:
        """Run rows (slot, tokens) of one bucket: whole prompts, or parts that start where `starts` says."""
        config = self._config
        height = config.rows(len(rows))
        devices = shard_count("batch", self._graph.rules)
        height = -(-height // devices) * devices  # each device that takes rows takes as many
        tokens = np.full((height, bucket), config.pad_id, np.int32)
        lengths = np.ones((height,), np.int32)
        slots = np.full((height,), config.slots, np.int32)
        for row, (slot, prompt) in enumerate(rows):
            tokens[row, : len(prompt)], lengths[row], slots[row] = prompt, len(prompt), slot
        common = (self._graph, self._params, self._state, tokens)
        shape = (*self._shape, height, bucket)
        if starts is None:
            self._state = self._run(("prefill", *shape), engine.prefill_prompts, *common, lengths, slots)
        else:
            places = np.zeros((height,), np.int32)
            places[: len(starts)] = starts
            self._state = self._run(("prefill-part", *shape), engine.prefill_parts, *common, places, lengths, slots)

    def _starts(self, placed: dict[int, Request], copies: list[tuple[int, int]]) -> engine.Starts:
        slots = self._config.slots

        def column(value: Callable[[Request], Any], dtype: type) -> np.ndarray:
            out = np.zeros((slots,), dtype)
            for slot, request in placed.items():
                out[slot] = value(request)
            return out

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
            copies=table,
            copy_count=np.int32(len(copies)),
        )

    def _read(self, look: engine.Look) -> Iterator[tuple[int, Progress]]:
        """Yield (slot, what its request got)."""
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


def _sizes(slots: int, shards: int) -> tuple[int, ...]:
    """Numbers of slots, ascending, that programs are made for: powers of four a shard, and all."""
    smaller = (shards * 4**power for power in range(slots.bit_length()))
    return (*(size for size in smaller if size < slots), slots)


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
