"""The expert's steps as batches of rows. Batch i is a function of the records, the seed and i only, so that a resumed
run continues with exactly the next one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence

import numpy as np

from environments.protocol import State, canonical_json
from mlagent_jax.agents.prompts import PromptTooLongError, Renderer
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.stages import SFTConfig
from mlagent_jax.sft.packing import Rows, Sample, bucket, fill, first_fit
from mlagent_jax.trajectories.record import Record

log = logging.getLogger(__name__)


class ExpertSteps:
    """Batches over `records`, `batches` per epoch, for any number of epochs.

    Every epoch shuffles and renders anew. A step's prompt carries its trajectory's ideas, in random order, with
    probability `idea_rate`, and otherwise none, because the policy later acts without them.

    Raises:
      ConfigError: No record fits the prompt limit.
    """

    def __init__(self, records: Sequence[Record], renderer: Renderer, config: SFTConfig, seed: int) -> None:
        self._records = _fitting(records, renderer)
        self._renderer, self._config, self._seed = renderer, config, seed
        self._open(0)
        self.batches = max(1, len(self._rows) // config.batch_size)

    def batch(self, index: int) -> Rows:
        """Return batch `index`, counted over epochs: [batch_size, row_tokens], or [batch_size, bucket of the longest
        sample] without packing."""
        epoch, position = divmod(index, self.batches)
        if epoch != self._epoch:
            self._open(epoch)
        first = position * self._config.batch_size
        # An epoch that packs into fewer rows than the first one starts over.
        places = np.arange(first, first + self._config.batch_size) % len(self._rows)
        rows = [[self._samples[i] for i in self._rows[place]] for place in places]
        return _filled(rows, self._config, self._renderer.tokenizer.pad_id)

    def position(self, index: int) -> dict[str, int | str]:
        """Return the position of batch `index` and the digest of the data, for a checkpoint before it."""
        epoch, batch = divmod(index, self.batches)
        return {"epoch": epoch, "batch": batch, "data": self.digest}

    @functools.cached_property
    def digest(self) -> str:
        """Return the digest of the records in their order: other data gives other batches."""
        whole = hashlib.sha256()
        for r in self._records:
            key = [r.split, r.state.task, r.trajectory, r.step, r.state.snapshot, r.action, len(r.state.history)]
            whole.update(canonical_json(key).encode())
        return whole.hexdigest()

    def _open(self, epoch: int) -> None:
        """Build the samples of an epoch and their rows. Rows become arrays on demand: the paper's collection would need
        tens of gigabytes."""
        config, rng = self._config, random.Random(f"{self._seed}/sft/{epoch}")  # noqa: S311 - reproducible, not secret
        samples = [self._sample(record, rng) for record in self._records for _ in range(config.renderings)]
        rng.shuffle(samples)
        self._epoch, self._samples, self._rows = epoch, samples, _rows(samples, config)

    def _sample(self, record: Record, rng: random.Random) -> Sample:
        ideas = rng.sample(record.state.ideas, len(record.state.ideas)) if rng.random() < self._config.idea_rate else ()
        try:
            prompt = self._renderer.encode(dataclasses.replace(record.state, ideas=tuple(ideas)))
        except PromptTooLongError:  # too long with ideas; it fits without
            prompt = self._renderer.encode(_plain(record.state))
        return _sample(prompt, self._renderer, record)


class HeldOutSteps:
    """Steps of held-out trajectories, without ideas, in fixed order: always the same batches; the last one is filled up
    with padding rows.

    Raises:
      ConfigError: No record fits the prompt limit.
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
    """Return (training records, held-out records). Whole trajectories are held out, so that their states are unseen:
    the same fraction of every task's, drawn by the seed.

    Raises:
      ConfigError: No task has enough trajectories for that fraction.
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
    split: tuple[list[Record], list[Record]] = [], []
    for record in records:
        split[(record.state.task, (record.run, record.trajectory)) in held].append(record)
    if not split[1]:
        raise ConfigError(
            f"config.sft.held_out_fraction is {fraction}, and no task has enough trajectories for it (at most "
            f"{max(map(len, by_task.values()))}): raise it, or collect more"
        )
    return split


def _fitting(records: Sequence[Record], renderer: Renderer) -> list[Record]:
    fitting = [record for record in records if renderer.fits(_plain(record.state))]
    if not fitting:
        raise ConfigError("no expert step fits config.prompt.max_prompt_tokens: raise it")
    if missing := len(records) - len(fitting):
        log.warning(
            "sft leaves out %d of %d expert steps: the last, %s",
            *(missing, len(records), next(filter(None, (renderer.misfit(_plain(each.state)) for each in records)))),
        )
    return fitting


def _plain(state: State) -> State:
    return dataclasses.replace(state, ideas=())


def _sample(prompt: Sequence[int], renderer: Renderer, record: Record) -> Sample:
    return Sample(np.asarray(prompt, np.int32), np.asarray(renderer.encode_action(record.action), np.int32))


def _rows(samples: Sequence[Sample], config: SFTConfig) -> list[list[int]]:
    """Return the sample indices of each row."""
    lengths = [len(sample) for sample in samples]
    rows = first_fit(lengths, config.row_tokens)
    return rows if config.packing else [[i] for i in range(len(samples))]


def _filled(rows: Sequence[Sequence[Sample]], config: SFTConfig, pad_id: int) -> Rows:
    time = config.row_tokens
    if not config.packing:
        time = bucket(max(sum(map(len, row)) for row in rows), time)
    return fill(rows, time, pad_id)
