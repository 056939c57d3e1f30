"""Which prompt stands in which row of the cache, and which slots read it: the bookkeeping on the host.

A prompt has a row for up to `samples` of its completions, each in a slot of its own. On a mesh that splits slots into
shards, a row and its slots are on the same one. Work is linear in the tokens of distinct prompts: each is hashed once,
in blocks of `shared_prefix` tokens, so that the longest beginning that another prompt shares is found by its hash.
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
    """A distinct prompt of requests that are wanted."""

    tokens: np.ndarray
    """int32 [length]"""
    marks: tuple[int, ...]
    """Hashes of its beginnings of 1, 2, ... blocks of `shared_prefix` tokens."""
    rows: list[Row] = dataclasses.field(default_factory=list)
    """Rows in which it stands, or will."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(eq=False)
class Row:
    """A row of the cache of prompts."""

    index: int
    shard: int
    prompt: Prompt | None = None
    """None: other requests do not find what stands there, if anything."""
    length: int = 0
    """Tokens of the prompt, also of one that is not found any more."""
    members: dict[int, int] = dataclasses.field(default_factory=dict)
    """Slots that read it, or will, by their columns."""
    pinned: bool = False
    """Whether its prompt is on its way, and the row is not to be given to another one."""
    spoiled: bool = False
    """Whether what it holds may be no numbers."""


class Rows:
    """Rows and slots, and who has them.

    Args:
        config: The programs' shapes.
        shards: Into how many a mesh splits slots and rows.
    """

    def __init__(self, config: SamplerConfig, shards: int) -> None:
        self._samples, self._block, self._shards = config.samples, config.shared_prefix, shards
        self._known: weakref.WeakValueDictionary[tuple[int, ...], Prompt] = weakref.WeakValueDictionary()
        self._marked: dict[int, dict[Row, None]] = {}  # by hash of a beginning, the newest last
        self._of: dict[int, tuple[Row, int]] = {}  # (row, column) by slot
        self._idle: dict[Row, None] = {}  # rows that no slot reads, the one that was left first in front
        self._rows: list[Row] = []
        self._free: list[list[int]] = [[] for _ in range(shards)]  # heaps of slots
        self._slots = 0
        self.resize(config)

    @property
    def used(self) -> int:
        """Slots that are not free."""
        return len(self._of)

    def __len__(self) -> int:
        return len(self._rows)

    def resize(self, config: SamplerConfig) -> None:
        """Have the slots and rows of `config`: more than before, or none of those that go is in use."""
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
        """The prompt with these tokens, hashed once while it is in use."""
        if (known := self._known.get(tokens)) is None:
            array, marks, mark = np.array(tokens, np.int32), [], 0
            for end in range(self._block, len(tokens) + 1, self._block) if self._block else ():
                mark = hash((mark, array[end - self._block : end].tobytes()))
                marks.append(mark)
            self._known[tokens] = known = Prompt(array, tuple(marks))
        return known

    def take(self, prompt: Prompt) -> tuple[int, Row, bool] | None:
        """(slot for a completion of `prompt`, row that it reads, whether the prompt is new there) or None.

        A row that is new is one that nobody reads, empty if possible, else the one that was left first. Rows do not
        find what it begins with until `show`."""
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
        """Let later prompts find what that of `row` begins with."""
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
        """Free a slot; its row, which keeps its prompt."""
        row, column = self._of.pop(slot)
        del row.members[column]
        heapq.heappush(self._free[row.shard], slot)
        if not row.members:
            self._idle[row] = None
        return row

    def row(self, slot: int) -> Row:
        """What a slot reads."""
        return self._of[slot][0]

    def forget(self, row: Row) -> None:
        """Let no other request find the prompt of a row there."""
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
        """(row, tokens) that holds the longest beginning of the prompt of `row` that is worth copying, or all of it;
        of those that share the same blocks the newest. 0 tokens where there is none."""
        prompt = row.prompt
        if prompt.rows[0] is not row:
            return prompt.rows[0], len(prompt)
        if len(prompt) <= self._block:
            return None, 0
        for mark in reversed(prompt.marks):
            holder = next(reversed(self._marked.get(mark, {})), None)
            if holder is not None:
                size = min(len(holder.prompt), len(prompt) - 1)  # of the last token the state is needed
                differing = np.not_equal(holder.prompt.tokens[:size], prompt.tokens[:size])
                shared = int(differing.argmax()) if differing.any() else size
                return (holder, shared) if shared >= min(self._block, size) else (None, 0)
        return None, 0

    def groups(self, running: Iterable[int]) -> Groups:
        """What the `running` slots read, as decoding takes it."""
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
