"""Samples of many lengths in rows of one length: several per row, separated by segment ids (no attention across), or
one per row followed by padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """Prompt and the action to learn."""

    prompt: Sequence[int]
    action: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.action)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of samples, all [rows, time]. Position t predicts `targets[:, t]` if `mask[:, t]`."""

    tokens: np.ndarray  # int32
    targets: np.ndarray  # int32, the next token of the same segment
    mask: np.ndarray  # bool, true where the target is an action token
    segment_ids: np.ndarray  # int32, from 1 in each row; 0 is padding
    positions: np.ndarray  # int32, from 0 in each segment

    def __len__(self) -> int:
        return len(self.tokens)

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def pack(samples: Sequence[Sample], row_tokens: int, pad_id: int) -> Rows:
    """Return `fill` of `first_fit`."""
    placed = first_fit([len(sample) for sample in samples], row_tokens)
    return fill([[samples[i] for i in row] for row in placed], row_tokens, pad_id)


def first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Assign samples, given by length, to rows, first-fit in the given order; deterministic for an order drawn from a
    seed.

    Returns:
      The sample indices of each row.

    Raises:
      ValueError: A sample is longer than a row.
    """
    rows: list[list[int]] = []
    used: list[int] = []
    open_rows: list[int] = []
    for sample, length in enumerate(lengths):
        if length > row_tokens:
            raise ValueError(f"a sample of {length} tokens does not fit a row of {row_tokens}: raise sft.row_tokens")
        row = next((r for r in open_rows if used[r] + length <= row_tokens), None)
        if row is None:
            row = len(rows)
            rows.append([])
            used.append(0)
            open_rows.append(row)
        rows[row].append(sample)
        used[row] += length
        if used[row] > row_tokens - 16:  # nearly full: close it
            open_rows.remove(row)
    return rows


def bucket(length: int, row_tokens: int) -> int:
    """Return the smallest of eight lengths up to `row_tokens` that holds `length`, so that few shapes are compiled."""
    step = -(-row_tokens // 8)
    return min(row_tokens, step * max(1, -(-length // step)))


def fill(rows: Sequence[Sequence[Sample]], row_tokens: int, pad_id: int) -> Rows:
    """Fill rows with samples, one segment per sample; a row without samples is padding and has no weight.

    Args:
      rows: Samples of each row, each at least one token, together at most `row_tokens`.
      row_tokens: Length of a row.
    """
    shape = (len(rows), row_tokens)
    filled = Rows(
        tokens=np.full(shape, pad_id, np.int32),
        targets=np.full(shape, pad_id, np.int32),
        mask=np.zeros(shape, bool),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
    )
    for r, samples in enumerate(rows):
        start = 0
        for segment, sample in enumerate(samples, 1):
            prompt, end = len(sample.prompt), start + len(sample)
            filled.tokens[r, start : start + prompt] = sample.prompt
            filled.tokens[r, start + prompt : end] = sample.action
            filled.targets[r, start : end - 1] = filled.tokens[r, start + 1 : end]
            # The last prompt token predicts the first action token.
            filled.mask[r, start + max(0, prompt - 1) : end - 1] = True
            filled.segment_ids[r, start:end] = segment
            filled.positions[r, start:end] = np.arange(len(sample))
            start = end
    return filled
