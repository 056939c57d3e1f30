"""Tokens of a batch as the update reads them: packed rows, processed in passes. Actions of one prompt share it.

`RowPacker` holds the few shapes of a run; `Passes` are the arrays of one batch or mini-batch.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.models.packing import Sample, Shapes, blocks, fill
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runtime import processes
from mlagent_jax.settings.schema import Config

log = logging.getLogger(__name__)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "positions", "segment_ids", "prompt_ids", "at", "targets", "entries", "count"],
    meta_fields=["single"],
)
@dataclasses.dataclass(frozen=True)
class Passes:
    """Rows of all passes, or of one pass without the leading axis. The mesh splits the rows."""

    tokens: jax.Array  # int32 [passes, rows, time], layout of `models.packing`
    positions: jax.Array  # as `tokens`
    segment_ids: jax.Array  # as `tokens`
    prompt_ids: jax.Array  # as `tokens`
    at: jax.Array  # int32 [passes, rows, decisions], positions whose outputs predict action tokens
    targets: jax.Array  # int32 [passes, rows, decisions], the predicted tokens
    entries: jax.Array  # int32 [passes, rows, decisions], index in the flat [batch, action]; out of bounds: padding
    count: jax.Array | None = None  # int32 [], passes with content, which come first; None: all
    single: bool = False  # whether each row holds one action, so that lengths replace segments

    @property
    def each(self) -> Passes:
        """Return the passes without their count, as a loop over passes takes them."""
        return dataclasses.replace(self, count=None)

    def by_action(self, values: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Scatter `values` [rows, decisions] of one pass to [batch, action]; other positions are 0.

        Args:
          values: One value per decision.
          shape: (batch, action).
        """
        flat = jnp.zeros(shape[0] * shape[1], values.dtype)
        return flat.at[self.entries.ravel()].set(values.ravel(), mode="drop").reshape(shape)


class RowPacker:
    """Packs the batches of a run into rows of few shapes.

    Args:
      config: Settings of the run, with the limits of prompts, actions and passes.
      pad_id: Token of the padding.
      hidden_size: Width of the model, which weighs the cost of long rows against the cost of padding.
      shards: Number of shards that the mesh splits rows into.
      single: Whether each action has its own row, for attention kernels without segments.
    """

    def __init__(self, config: Config, pad_id: int, hidden_size: int, shards: int = 1, *, single: bool = False) -> None:
        rl, self._pad_id, self._single = config.rl, pad_id, single
        self._action_tokens = config.prompt.max_action_tokens
        self._longest = longest_block(config, single=single)
        # Rows that hold several blocks have less padding.
        limit = self._longest if single else max(self._longest, min(2 * self._longest, rl.micro_tokens))
        if single:
            log.info("rl: the attention kernel cudnn takes no segments: every action is computed with its own prompt")
        self._samples = 1 if single or rl.rollout == "episode" else rl.samples
        # A layer takes 24 h^2 operations per position, its attention another 4 h for each attended position.
        self.shapes = Shapes(self._longest, limit, shards=shards, budget=rl.micro_tokens, width=6 * hidden_size)

    def pack(self, samples: Sequence[Sample], chosen: Sequence[int], size: int) -> Passes:
        """Return the rows of the `chosen` samples as host arrays, in a shape that holds any `size` samples.

        Args:
          samples: All samples of the batch.
          chosen: Indices of the samples to pack.
          size: Maximum number of chosen samples.
        """
        found = blocks(samples, chosen, self._longest, share=not self._single)
        shape, rows = self.shapes.choose(found, alone=self._single)
        most = -(-size // self._samples) + 1  # one row per group, and one more if a boundary splits a group
        if len(rows) > most:
            most = max(size, len(rows))
        passes = -(-most // shape.rows)
        filled = fill(samples, [*rows, *[[]] * (passes * shape.rows - len(rows))], shape.time, self._pad_id)
        places = np.full((passes * shape.rows, shape.decisions), np.iinfo(np.int32).max, np.int32)
        at, targets = np.zeros_like(places), np.zeros_like(places)
        for r, row in enumerate(rows):
            actions = [(index, len(samples[index].action)) for block in row for index in block.members]
            here = np.concatenate([index * self._action_tokens + np.arange(length) for index, length in actions])
            decides = np.flatnonzero(filled.mask[r])
            places[r, : len(here)], at[r, : len(here)] = here, decides
            targets[r, : len(here)] = filled.targets[r, decides]
        names = ("tokens", "positions", "segment_ids", "prompt_ids")
        arrays = {name: getattr(filled, name) for name in names} | {"at": at, "targets": targets, "entries": places}
        return Passes(
            **{name: array.reshape(passes, shape.rows, -1) for name, array in arrays.items()},
            count=np.int32(-(-len(rows) // shape.rows)),
            single=self._single,
        )


def longest_block(config: Config, *, single: bool = False) -> int:
    """Return the positions of the longest prompt with all of its actions; with one action if `single`."""
    actions = 1 if single else config.rl.samples
    return config.prompt.max_prompt_tokens - 1 + actions * config.prompt.max_action_tokens


def place(passes: Passes, devices: Devices) -> Passes:
    """Copy host arrays to the devices; the mesh splits the rows of each pass."""
    rows = {name: getattr(passes, name) for name in _ROWS}
    return dataclasses.replace(passes, **devices.place(rows, axis=1), count=processes.everywhere(passes.count))


_ROWS = ("tokens", "positions", "segment_ids", "prompt_ids", "at", "targets", "entries")
