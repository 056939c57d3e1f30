"""Bookkeeping on the host: the prompt of each row of the cache, and the slots that read the row.

A row serves up to `samples` completions of its prompt, each in its own slot. If a mesh splits the slots into shards, a
row and its slots are in the same shard. Work is linear in the tokens of distinct prompts: each prompt is hashed once,
in blocks of `shared_prefix` tokens, and the longest shared beginning is found by its hash.
"""

from __future__ import annotations

import dataclasses
import heapq
import weakref
from collections.abc import Iterable

import numpy as np

from mlagent_jax.models import Groups
from mlagent_jax.sampling.config import SamplerConfig


@dataclasses.dataclass(eq=False)
class Prompt:
    """Distinct prompt of one or more requests."""

    tokens: np.ndarray
    """int32 [length]: token ids."""
    marks: tuple[int, ...]
    """Hashes of the first 1, 2, ... blocks of `shared_prefix` tokens."""
    rows: list[Row] = dataclasses.field(default_factory=list)
    """Rows that hold the prompt, or will hold it."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(eq=False)
class Row:
    """Row of the prompt cache."""

    index: int
    shard: int
    prompt: Prompt | None = None
    """Prompt of the row; None: the row is empty, or new requests must not use its contents."""
    length: int = 0
    """Tokens of the prompt in the row, also after `prompt` was set to None."""
    members: dict[int, int] = dataclasses.field(default_factory=dict)
    """Slots that read the row, or will read it, by their column in `Groups.members`."""
    pinned: bool = False
    """Whether the prompt is still being written, so that no other prompt may get the row."""
    spoiled: bool = False
    """Whether the row may hold NaN or infinity."""


class Rows:
    """Assignment of prompts to rows, and of completions to slots.

    Args:
        config: Shapes of the programs.
        shards: Number of shards that a mesh splits slots and rows into.
    """

    def __init__(self, config: SamplerConfig, shards: int) -> None:
        self._samples, self._block, self._shards = config.samples, config.shared_prefix, shards
        self._known: weakref.WeakValueDictionary[tuple[int, ...], Prompt] = weakref.WeakValueDictionary()
        self._marked: dict[int, dict[Row, None]] = {}  # rows by the hash of a beginning, the newest last
        self._of: dict[int, tuple[Row, int]] = {}  # (row, column) by slot
        self._idle: dict[Row, None] = {}  # rows without reading slots, the longest idle first
        self._rows: list[Row] = []
        self._free: list[list[int]] = [[] for _ in range(shards)]  # heaps of slots
        self._slots = 0
        self.resize(config)

    @property
    def used(self) -> int:
        """Number of slots in use."""
        return len(self._of)

    def __len__(self) -> int:
        return len(self._rows)

    def resize(self, config: SamplerConfig) -> None:
        """Change to the slots and rows of `config`. Slots and rows that are removed must not be in use."""
        count = config.prompt_rows(self._shards)
        for row in self._rows[count:]:
            self.forget(row)
            del self._idle[row]
        del self._rows[count:]
        for index in range(len(self._rows), count):
            row = Row(index, index * self._shards // count)
            self._rows.append(row)
            self._idle[row] = None
        self._slots = config.slots
        self._free = [[] for _ in range(self._shards)]
        for slot in range(config.slots):
            if slot not in self._of:
                self._free[slot * self._shards // config.slots].append(slot)  # ascending: a heap

    def prompt(self, tokens: tuple[int, ...]) -> Prompt:
        """Return the prompt with these tokens; it is hashed once for as long as it is in use."""
        if (known := self._known.get(tokens)) is None:
            array, marks, mark = np.array(tokens, np.int32), [], 0
            for end in range(self._block, len(tokens) + 1, self._block) if self._block else ():
                mark = hash((mark, array[end - self._block : end].tobytes()))
                marks.append(mark)
            self._known[tokens] = known = Prompt(array, tuple(marks))
        return known

    def take(self, prompt: Prompt) -> tuple[int, Row, bool] | None:
        """Assign a slot and a row to a completion of `prompt`.

        A row that holds the prompt is reused while it has a free column and its shard a free slot. Otherwise the prompt
        gets a row that no slot reads. Empty rows come first, then rows in the shard with the most free slots, then the
        longest idle row. Other prompts can share the beginning of a new row after `show`.

        Returns:
            (slot, row, whether the prompt is new in the row), or None if no slot or row is free.
        """
        for row in prompt.rows:
            if len(row.members) < self._samples and self._free[row.shard]:
                return self._seat(row), row, False
        candidates = [row for row in self._idle if not row.pinned and self._free[row.shard]]
        if not candidates:
            return None
        row = max(candidates, key=lambda row: (row.prompt is None, len(self._free[row.shard])))
        self.forget(row)
        row.prompt, row.length = prompt, len(prompt)
        prompt.rows.append(row)
        return self._seat(row), row, True

    def show(self, row: Row) -> None:
        """Let later prompts share the beginning of the prompt in `row`."""
        for mark in row.prompt.marks:
            self._marked.setdefault(mark, {})[row] = None

    def _seat(self, row: Row) -> int:
        slot = heapq.heappop(self._free[row.shard])
        column = next(column for column in range(self._samples) if column not in row.members)
        row.members[column] = slot
        self._of[slot] = row, column
        self._idle.pop(row, None)
        return slot

    def leave(self, slot: int) -> Row:
        """Free a slot, and return its row, which keeps the prompt."""
        row, column = self._of.pop(slot)
        del row.members[column]
        heapq.heappush(self._free[row.shard], slot)
        if not row.members:
            self._idle[row] = None
        return row

    def row(self, slot: int) -> Row:
        """Return the row that a slot reads."""
        return self._of[slot][0]

    def forget(self, row: Row) -> None:
        """Keep new requests from using the contents of a row."""
        if row.prompt is None:
            return
        row.prompt.rows.remove(row)
        for mark in row.prompt.marks:
            holders = self._marked.get(mark, {})
            holders.pop(row, None)
            if not holders:
                self._marked.pop(mark, None)
        row.prompt = None

    def longest_shared(self, row: Row) -> tuple[Row | None, int]:
        """Find the longest beginning of the prompt in `row` that another row holds and that is worth copying.

        Returns:
            (other row, shared tokens); of rows that share the same blocks, the newest. The tokens are 0 if no row holds
            such a beginning.
        """
        prompt = row.prompt
        if prompt.rows[0] is not row:
            return prompt.rows[0], len(prompt)
        if len(prompt) <= self._block:
            return None, 0
        for mark in reversed(prompt.marks):
            holder = next(reversed(self._marked.get(mark, {})), None)
            if holder is not None:
                size = min(len(holder.prompt), len(prompt) - 1)  # the last token is run, for its hidden state
                differing = np.not_equal(holder.prompt.tokens[:size], prompt.tokens[:size])
                shared = int(differing.argmax()) if differing.any() else size
                return (holder, shared) if shared >= min(self._block, size) else (None, 0)
        return None, 0

    def groups(self, running: Iterable[int]) -> Groups:
        """Return the prompt rows of the `running` slots as arrays for `decode`."""
        rows, local = len(self._rows), self._slots // self._shards
        lengths = np.zeros((rows,), np.int32)
        members = np.zeros((rows, self._samples), np.int32)
        places = np.zeros((self._slots,), np.int32)
        for slot in running:
            row, column = self._of[slot]
            lengths[row.index] = row.length
            members[row.index, column] = slot % local
            places[slot] = row.index % (rows // self._shards) * self._samples + column
        return Groups(lengths, members, places)
