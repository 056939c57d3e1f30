"""Packing of actions with their prompts into rows of one length. Actions of one prompt share one copy of it.

    samples -> blocks -> packed (or Shapes.choose) -> fill -> Rows

A block is a prompt with its actions. Its row holds the prompt without its last token, and then each action without its
last token, preceded by the last token of the prompt. Each token of an action is thus predicted at a position that
belongs to this action alone.

    tokens        p0 p1 | p2 a0 a1 | p2 b0        of the prompt p0 p1 p2 and the actions a0 a1 a2 and b0 b1
    targets             | a0 a1 a2 | b0 b1
    segment_ids    1  1 |  2  2  2 |  3  3
    prompt_ids     1  1 |  1  1  1 |  1  1        the segment that a position attends to beside its own
    positions      0  1 |  2  3  4 |  2  3
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """Prompt and the action to learn, each at least one token."""

    prompt: Sequence[int]
    action: Sequence[int]

    def __len__(self) -> int:
        """Return the number of positions in a row of its own."""
        return len(self.prompt) - 1 + len(self.action)


@dataclasses.dataclass(frozen=True)
class Block:
    """Samples of one prompt that share a row."""

    members: tuple[int, ...]
    """Indices of the samples."""
    tokens: int
    """Positions in a row."""
    decisions: int
    """Total tokens of the actions."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of blocks, all [rows, time]. Position t predicts `targets[:, t]` if `mask[:, t]`."""

    tokens: np.ndarray  # int32
    targets: np.ndarray  # int32
    mask: np.ndarray  # bool, True where the target is a token of an action
    segment_ids: np.ndarray  # int32, from 1 in each row; 0 is padding
    prompt_ids: np.ndarray  # int32, segment of a shared prompt, else the position's own segment
    positions: np.ndarray  # int32, from 0 in each sample

    def __len__(self) -> int:
        return len(self.tokens)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by field name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def blocks(samples: Sequence[Sample], chosen: Sequence[int], row_tokens: int, *, share: bool = True) -> list[Block]:
    """Group the `chosen` samples by equal prompts; a group that exceeds a row is split into several blocks.

    Prompts are in the order of their first sample.

    Args:
      samples: All samples.
      chosen: Indices of the samples to group.
      row_tokens: Length of a row.
      share: Whether samples of one prompt share it; otherwise each sample is a block.

    Raises:
      ValueError: A sample is longer than a row.
    """
    groups: dict[object, list[int]] = {}
    for index in chosen:
        groups.setdefault(_key(samples[index].prompt) if share else index, []).append(index)
    return [block for members in groups.values() for block in _split(samples, members, row_tokens)]


def _key(prompt: Sequence[int]) -> bytes:
    return np.asarray(prompt, np.int32).tobytes()


def _split(samples: Sequence[Sample], members: Sequence[int], row_tokens: int) -> Iterator[Block]:
    prompt, part, decisions = len(samples[members[0]].prompt) - 1, [], 0
    for index in members:
        action = len(samples[index].action)
        if prompt + action > row_tokens:
            raise ValueError(
                f"a sample of {prompt + action} tokens does not fit a row of {row_tokens}: raise sft.row_tokens"
            )
        if prompt + decisions + action > row_tokens:
            yield Block(tuple(part), prompt + decisions, decisions)
            part, decisions = [], 0
        part.append(index)
        decisions += action
    yield Block(tuple(part), prompt + decisions, decisions)


def first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Assign items, given by their lengths, each to the first row that has room; n items take O(n log n) time.

    If the lengths decrease ("first fit decreasing"), the number of rows is at most 11/9 of the optimum, plus one.

    Returns:
      The indices of each row's items.

    Raises:
      ValueError: An item is longer than a row.
    """
    size = 1
    while size < len(lengths):
        size *= 2
    room = [row_tokens] * (2 * size)  # a tree of free tokens: row i is leaf size + i, a node is its children's maximum
    rows: list[list[int]] = []
    for item, length in enumerate(lengths):
        if length > row_tokens:
            raise ValueError(f"an item of {length} does not fit a row of {row_tokens}")
        node = 1
        while node < size:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        if node - size == len(rows):
            rows.append([])
        rows[node - size].append(item)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def packed(found: Sequence[Block], row_tokens: int) -> list[list[Block]]:
    """Assign the blocks to rows of `row_tokens` positions, the longest blocks first."""
    ordered = sorted(found, key=lambda block: -block.tokens)
    return [[ordered[i] for i in row] for row in first_fit([block.tokens for block in ordered], row_tokens)]


def bucket(length: int, row_tokens: int) -> int:
    """Return the smallest of eight lengths up to `row_tokens` that holds `length`: few lengths, few compilations."""
    step = -(-row_tokens // 8)
    return min(row_tokens, step * max(1, -(-length // step)))


def fill(samples: Sequence[Sample], rows: Sequence[Sequence[Block]], row_tokens: int, pad_id: int) -> Rows:
    """Write blocks to rows; a row without blocks is padding, with a mask of False.

    Args:
      samples: All samples; the members of blocks are indices of this list.
      rows: Blocks of each row, with at most `row_tokens` positions in total.
      row_tokens: Length of a row.
      pad_id: Token of the padding.
    """
    shape = (len(rows), row_tokens)
    filled = Rows(
        tokens=np.full(shape, pad_id, np.int32),
        targets=np.full(shape, pad_id, np.int32),
        mask=np.zeros(shape, bool),
        segment_ids=np.zeros(shape, np.int32),
        prompt_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
    )
    for r, row in enumerate(rows):
        start, segment = 0, 0
        for block in row:
            prompt = np.asarray(samples[block.members[0]].prompt, np.int32)
            known = len(prompt) - 1
            shared, segment = segment + 1, segment + 1
            here = slice(start, start + known)
            filled.tokens[r, here] = prompt[:-1]
            filled.segment_ids[r, here] = filled.prompt_ids[r, here] = shared
            filled.positions[r, here] = np.arange(known)
            start += known
            for index in block.members:
                action = samples[index].action
                segment += len(block.members) > 1  # a single action continues the segment of its prompt
                here = slice(start, start + len(action))
                filled.tokens[r, start] = prompt[-1]
                filled.tokens[r, start + 1 : here.stop] = action[:-1]
                filled.targets[r, here] = action
                filled.mask[r, here] = True
                filled.segment_ids[r, here] = segment
                filled.prompt_ids[r, here] = shared
                filled.positions[r, here] = known + np.arange(len(action))
                start = here.stop
    return filled


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """Shape of the rows of one pass."""

    rows: int
    """Rows per pass, over all devices."""
    time: int
    """Positions per row."""
    decisions: int
    """Maximum tokens of actions per row."""


class Shapes:
    """Shapes of a run's packed batches: few shapes with little padding.

    A batch takes a known shape whose padding is at most `waste`; otherwise the best shape for the batch is added. At
    most `most` shapes are known. The first of them holds the longest block, so that every batch fits one. The same
    batches in the same order take the same shapes, and `to_list` keeps the known shapes for a resume.

    Args:
      longest: Positions of the longest possible block.
      limit: Maximum positions of a row; at least `longest`.
      shards: Number that divides the rows of a pass.
      budget: Maximum positions per pass and shard, unless a single row has more.
      width: Cost of one position without attention, divided by the cost of attending to one position. The logits of a
        token are assumed to cost a tenth of a position.
      most: Maximum number of shapes.
      waste: Accepted padding, as a fraction of all positions.
    """

    def __init__(
        self,
        longest: int,
        limit: int,
        *,
        shards: int = 1,
        budget: int = 2048,
        width: int = 4096,
        most: int = 8,
        waste: float = 0.15,
    ) -> None:
        self._step = 64 if longest <= 2048 else 512  # step of row lengths; the fused kernels work on blocks of 512
        up = self._up
        self._limit, self._shards, self._budget = up(limit), shards, budget
        self._width, self._most, self._waste = width, most, waste
        self.known = [Shape(shards, up(longest), up(longest))]

    def choose(self, found: Sequence[Block], *, alone: bool = False) -> tuple[Shape, list[list[Block]]]:
        """Choose the shape of a batch.

        Args:
          found: Blocks of the batch.
          alone: Whether each block has its own row.

        Returns:
          The shape, and the blocks of each row.
        """
        total, packings = sum(block.tokens for block in found), {}
        longest = max(block.tokens for block in found)

        def rows_of(time: int) -> list[list[Block]]:
            if time not in packings:
                packings[time] = [[block] for block in found] if alone else packed(found, time)
            return packings[time]

        def cost(shape: Shape) -> float:
            passes = -(-len(rows_of(shape.time)) // shape.rows)
            position = 1.0 + shape.time / 2 / self._width + 0.1 * shape.decisions / shape.time
            return passes * (shape.rows * shape.time * position + _PASS)

        def padding(shape: Shape) -> float:
            passes = -(-len(rows_of(shape.time)) // shape.rows)
            return 1.0 - total / (passes * shape.rows * shape.time)

        def fits(shape: Shape) -> bool:
            return shape.time >= longest and _decisions(rows_of(shape.time)) <= shape.decisions

        fitting = [shape for shape in self.known if fits(shape)]
        good = [shape for shape in fitting if padding(shape) <= self._waste]
        if not good and len(self.known) < self._most:
            best = self._best(longest, rows_of, cost)
            # If the padding is due to one long block among many devices, another shape would not help.
            if not fitting or padding(best) < min(map(padding, fitting)) - self._waste / 3:
                self.known.append(best)
                good = [best]
        shape = min(good or fitting, key=lambda shape: (cost(shape), shape))
        return shape, rows_of(shape.time)

    def _best(self, longest: int, rows_of: Callable[[int], list[list[Block]]], cost: Callable[[Shape], float]) -> Shape:
        candidates = []
        for time in range(self._up(longest), self._limit + 1, self._step):
            decisions = decisions_of(time, _decisions(rows_of(time)))
            most = max(1, self._budget // time)
            candidates += [Shape(self._shards * rows, time, decisions) for rows in range(1, most + 1)]
        return min(candidates, key=lambda shape: (cost(shape), shape))

    def _up(self, length: int) -> int:
        return -(-length // self._step) * self._step

    def to_list(self) -> list[list[int]]:
        """Return the known shapes as JSON data, for `restore`."""
        return [list(dataclasses.astuple(shape)) for shape in self.known]

    def restore(self, data: Sequence[Sequence[int]]) -> None:
        """Restore the shapes of `to_list`, except those that the current mesh or budget does not allow."""
        self.known = self.known[:1] + [shape for shape in (Shape(*each) for each in data[1:]) if self._allows(shape)]

    def _allows(self, shape: Shape) -> bool:
        rows, rest = divmod(shape.rows, self._shards)
        return not rest and shape.time <= self._limit and (rows == 1 or rows * shape.time <= self._budget)


def decisions_of(time: int, needed: int) -> int:
    """Return the decisions of a shape with `time` positions per row, for a batch that needs `needed` per row.

    The result has a reserve of 10% for later batches. It is a quarter, a half or all of `time`, since few shapes are
    wanted and a decision costs little.
    """
    return next((time // part for part in (4, 2) if 1.1 * needed <= time // part), time)


_PASS = 64.0
"""Fixed cost of a pass, in positions: the sums of gradients are read and written once per pass."""


def _decisions(rows: Sequence[Sequence[Block]]) -> int:
    return max(sum(block.decisions for block in row) for row in rows)
