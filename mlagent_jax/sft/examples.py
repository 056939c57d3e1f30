"""The expert's steps as batches of rows: batch i is a function of the records, the seed and i alone, so that a resumed
run goes on with the very next one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import random
from collections.abc import Iterator, Sequence

import numpy as np

from environments.protocol import State, canonical_json
from mlagent_jax.agents.prompts import PromptTooLongError, Renderer
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import SFTConfig
from mlagent_jax.sft.packing import Rows, Sample, bucket, fill, first_fit
from mlagent_jax.trajectories.record import Record


class ExpertSteps:
    """Batches over `records`, `batches` an epoch, for any number of epochs.

    Every epoch shuffles and renders anew: a step's prompt carries its trajectory's ideas, in any order, with
    probability `idea_rate`, and none otherwise, as the policy will act later.

    Raises:
      ConfigError: none of the records fits the prompt limit.
    """

    def __init__(self, records: Sequence[Record], renderer: Renderer, config: SFTConfig, seed: int) -> None:
        self._records = _fitting(records, renderer)
        self._renderer, self._config, self._seed = renderer, config, seed
        self._open(0)
        self.batches = max(1, len(self._rows) // config.batch_size)

    def batch(self, index: int) -> Rows:
        """Batch `index`, counted over epochs: [batch_size, row_tokens], or the time that its longest sample takes where
        samples are not packed."""
        epoch, position = divmod(index, self.batches)
        if epoch != self._epoch:
            self._open(epoch)
        first = position * self._config.batch_size
        # An epoch that packs into fewer rows than the first one starts over.
        places = np.arange(first, first + self._config.batch_size) % len(self._rows)
        rows = [[self._samples[i] for i in self._rows[place]] for place in places]
        return _filled(rows, self._config, self._renderer.tokenizer.pad_id)

    def position(self, index: int) -> dict[str, int | str]:
        """Where batch `index` stands, for a checkpoint before it, and in which data."""
        epoch, batch = divmod(index, self.batches)
        return {"epoch": epoch, "batch": batch, "data": self.digest}

    @functools.cached_property
    def digest(self) -> str:
        """Of the records in their order: other data would give other batches."""
        whole = hashlib.sha256()
        for r in self._records:
            key = [r.split, r.state.task, r.trajectory, r.step, r.state.snapshot, r.action, len(r.state.history)]
            whole.update(canonical_json(key).encode())
        return whole.hexdigest()

    def _open(self, epoch: int) -> None:
        """Samples of an epoch and the rows that they make. Rows become arrays when they are asked for: the paper's
        collection would take tens of gigabytes as such."""
        config, rng = self._config, random.Random(f"{self._seed}/sft/{epoch}")  # noqa: S311 - reproducible, not secret
        samples = [self._sample(record, rng) for record in self._records for _ in range(config.renderings)]
        rng.shuffle(samples)
        self._epoch, self._samples, self._rows = epoch, samples, _rows(samples, config)

    def _sample(self, record: Record, rng: random.Random) -> Sample:
        ideas = rng.sample(record.state.ideas, len(record.state.ideas)) if rng.random() < self._config.idea_rate else ()
        try:
            prompt = self._renderer.encode(dataclasses.replace(record.state, ideas=tuple(ideas)))
        except PromptTooLongError:  # with its ideas; without them it fits
            prompt = self._renderer.encode(_plain(record.state))
        return _sample(prompt, self._renderer, record)


class HeldOutSteps:
    """The steps of trajectories that are not trained on, without their ideas, in an order of their own: always the
    same batches, of `rows` rows; the last one is filled up with rows of padding.

    Raises:
      ConfigError: none of the records fits the prompt limit.
    """

    def __init__(self, records: Sequence[Record], renderer: Renderer, config: SFTConfig) -> None:
        samples = [_sample(renderer.encode(_plain(r.state)), renderer, r) for r in _fitting(records, renderer)]
        self._config, self._pad_id = config, renderer.tokenizer.pad_id
        self._rows = [[samples[i] for i in row] for row in _rows(samples, config)]

    def __iter__(self) -> Iterator[Rows]:
        size = self._config.micro_batch or self._config.batch_size
        for first in range(0, len(self._rows), size):
            rows = self._rows[first : first + size]
            yield _filled([*rows, *[[]] * (size - len(rows))], self._config, self._pad_id)


def split_trajectories(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(to train on, held out): whole trajectories, so that no state of one is known from the other; the same share of
    every task's, drawn by the seed.

    Raises:
      ConfigError: no task has enough trajectories for that share.
    """
    if not fraction:
        return list(records), []
    by_task: dict[str, dict[tuple[str, int], None]] = {}
    for record in records:
        by_task.setdefault(record.state.task, {})[record.run, record.trajectory] = None
    held: set[tuple[str, tuple[str, int]]] = set()
    for task, trajectories in by_task.items():
        rng = random.Random(f"{seed}/held out/{task}")  # noqa: S311 - reproducible, not secret
        count = min(round(fraction * len(trajectories)), len(trajectories) - 1)
        held.update((task, key) for key in rng.sample(list(trajectories), count))
    parts: tuple[list[Record], list[Record]] = [], []
    for record in records:
        parts[(record.state.task, (record.run, record.trajectory)) in held].append(record)
    if not parts[1]:
        raise ConfigError(
            f"config.sft.held_out_fraction is {fraction}, and no task has enough trajectories for it (at most "
            f"{max(map(len, by_task.values()))}): raise it, or collect more"
        )
    return parts


def _fitting(records: Sequence[Record], renderer: Renderer) -> list[Record]:
    found = [record for record in records if renderer.fits(_plain(record.state))]
    if not found:
        raise ConfigError("no expert step fits config.prompt.max_prompt_tokens: raise it")
    return found


def _plain(state: State) -> State:
    return dataclasses.replace(state, ideas=())


def _sample(prompt: Sequence[int], renderer: Renderer, record: Record) -> Sample:
    return Sample(np.asarray(prompt, np.int32), np.asarray(renderer.encode_action(record.action), np.int32))


def _rows(samples: Sequence[Sample], config: SFTConfig) -> list[list[int]]:
    """The samples of each row, by index."""
    lengths = [len(sample) for sample in samples]
    rows = first_fit(lengths, config.row_tokens)
    return rows if config.packing else [[i] for i in range(len(samples))]


def _filled(rows: Sequence[Sequence[Sample]], config: SFTConfig, pad_id: int) -> Rows:
    time = config.row_tokens
    if not config.packing:
        time = bucket(max(sum(map(len, row)) for row in rows), time)
    return fill(rows, time, pad_id)
