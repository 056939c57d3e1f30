"""Samples of many lengths in rows of one length: several to a row, told apart by segment ids (no attention across)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and the action to be learned."""

    prompt: tuple[int, ...]
    action: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.action)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed rows, all [rows, time]. Position t is to predict `targets[:, t]` where `mask[:, t]`."""

    tokens: np.ndarray  # int32
    targets: np.ndarray  # int32, the next token of the same segment
    mask: np.ndarray  # bool, true where the target is an action token
    segment_ids: np.ndarray  # int32, from 1 in each row; 0 is padding
    positions: np.ndarray  # int32, from 0 in each segment

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | np.ndarray) -> Rows:
        return Rows(**{name: array[index] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def pack(samples: Sequence[Sample], row_tokens: int, pad_id: int) -> Rows:
    """First-fit packing in the order given, so that an order drawn from a seed gives the same rows again.

    Args:
      samples: at least one token each.
      row_tokens: length of a row.

    Raises:
      ValueError: a sample is longer than a row.
    """
    rows: list[list[Sample]] = []
    used: list[int] = []
    open_rows: list[int] = []
    for sample in samples:
        if len(sample) > row_tokens:
            raise ValueError(
                f"a sample of {len(sample)} tokens does not fit a row of {row_tokens}: raise sft.row_tokens"
            )
        row = next((r for r in open_rows if used[r] + len(sample) <= row_tokens), None)
        if row is None:
            row = len(rows)
            rows.append([])
            used.append(0)
            open_rows.append(row)
        rows[row].append(sample)
        used[row] += len(sample)
        if used[row] > row_tokens - 16:  # as good as full: not looked at again
            open_rows.remove(row)
    count = len(rows)
    packed = Rows(
        tokens=np.full((count, row_tokens), pad_id, np.int32),
        targets=np.full((count, row_tokens), pad_id, np.int32),
        mask=np.zeros((count, row_tokens), bool),
        segment_ids=np.zeros((count, row_tokens), np.int32),
        positions=np.zeros((count, row_tokens), np.int32),
    )
    for r, row_samples in enumerate(rows):
        start = 0
        for segment, sample in enumerate(row_samples, 1):
            ids, end = (*sample.prompt, *sample.action), start + len(sample)
            packed.tokens[r, start:end] = ids
            packed.targets[r, start : end - 1] = ids[1:]
            # The last prompt token predicts the first action token.
            packed.mask[r, start + max(0, len(sample.prompt) - 1) : end - 1] = True
            packed.segment_ids[r, start:end] = segment
            packed.positions[r, start:end] = np.arange(len(sample))
            start = end
    return packed
