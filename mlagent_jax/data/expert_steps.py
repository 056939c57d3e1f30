"""The expert's steps as batches of packed rows: batch i is a function of the seed and i alone, so that a resumed run
goes on with the very next one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from mlagent_jax.agent.prompts import PromptTooLongError, Renderer
from mlagent_jax.config import SFTConfig
from mlagent_jax.data.packing import Rows, Sample, pack
from mlagent_jax.data.trajectories import Record
from mlagent_jax.errors import ConfigError


class ExpertSteps:
    """Batches over `records`, `batches` an epoch, for any number of epochs.

    Every epoch shuffles and renders anew: a step's prompt carries its trajectory's ideas, in any order, with
    probability `idea_rate`, and none otherwise, as the policy will act later.

    Raises:
      ConfigError: none of the records fits the prompt limit.
    """

    def __init__(self, records: Sequence[Record], renderer: Renderer, config: SFTConfig, seed: int) -> None:
        self._records = [record for record in records if renderer.fits(dataclasses.replace(record.state, ideas=()))]
        if not self._records:
            raise ConfigError("no expert step fits config.prompt.max_prompt_tokens: raise it")
        self._renderer, self._config, self._seed = renderer, config, seed
        self._epoch, self._rows = 0, self._render(0)
        self.batches = max(1, len(self._rows) // config.batch_size)

    def batch(self, index: int) -> Rows:
        """Batch `index`, counted over epochs: [batch_size, row_tokens]."""
        epoch, position = divmod(index, self.batches)
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._render(epoch)
        first = position * self._config.batch_size
        # An epoch that packs into fewer rows than the first one starts over.
        return self._rows[np.arange(first, first + self._config.batch_size) % len(self._rows)]

    def _render(self, epoch: int) -> Rows:
        rng = random.Random(f"{self._seed}/sft/{epoch}")  # noqa: S311 - reproducible, not secret
        samples = [self._sample(record, rng) for record in self._records for _ in range(self._config.renderings)]
        rng.shuffle(samples)
        return pack(samples, self._config.row_tokens, self._renderer.tokenizer.pad_id)

    def _sample(self, record: Record, rng: random.Random) -> Sample:
        ideas = rng.sample(record.state.ideas, len(record.state.ideas)) if rng.random() < self._config.idea_rate else ()
        try:
            prompt = self._renderer.encode(dataclasses.replace(record.state, ideas=tuple(ideas)))
        except PromptTooLongError:  # with its ideas; without them it fits
            prompt = self._renderer.encode(dataclasses.replace(record.state, ideas=()))
        return Sample(tuple(prompt), tuple(self._renderer.encode_action(record.action)))
