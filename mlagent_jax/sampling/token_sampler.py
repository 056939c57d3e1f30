"""The sampler of reinforcement learning: token ids in, completions out.

Each call is given the weights. They are the trainer's own arrays, so there is nothing to synchronise. To continue
sampling while the trainer's next update consumes (donates) these arrays, call `weights` first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mlagent_jax.models import Graph, Params
from mlagent_jax.parallelism import shard_count
from mlagent_jax.sampling.batch import Batch
from mlagent_jax.sampling.config import Completion, Progress, Request, SamplerConfig, SamplingError
from mlagent_jax.sampling.first_runs import FirstRuns
from mlagent_jax.sampling.layout import for_sampling
from mlagent_jax.sampling.weights import Preparation, Weights


class TokenSampler:
    """Samples completions of prompts.

    Between calls, the device memory of a sampler is that of weights that it had to copy; `release` frees them.

    Args:
        graph: The model.
        config: Distribution, limits and shapes of the programs.
        dispatch_lock: Lock held while a program is dispatched to the devices; see `FirstRuns`.
        mesh: Mesh that the weights are sharded over; None or one device: weights keep their layout.
        rules: Changed rows of the sampler's sharding rules; see `sampling.layout`.

    Raises:
        ValueError: `rules` cannot be parsed.
    """

    def __init__(
        self,
        graph: Graph,
        config: SamplerConfig,
        dispatch_lock: contextlib.AbstractContextManager[Any] | None = None,
        *,
        mesh: Mesh | None = None,
        rules: str = "",
    ) -> None:
        self._graph, self._config = for_sampling(graph, mesh, rules), config
        self._run = FirstRuns(dispatch_lock)
        self._prepare = Preparation(config.compute_dtype, graph=self._graph)

    @property
    def config(self) -> SamplerConfig:
        """Settings of this sampler."""
        return self._config

    @property
    def compilations(self) -> int:
        """Number of programs compiled for this sampler so far."""
        return self._run.count

    def weights(self, params: Params, donated: Params | None = None) -> Weights:
        """Prepare `params` for decoding, for use in several calls.

        Copies of earlier parameters are released first, unless `params` contain the same arrays. If the caller keeps no
        earlier `Weights` either, there is one copy at a time.

        Args:
            params: Parameters in the tree of `models.create`.
            donated: Tree of arrays that will be donated to a program meanwhile; they are copied. None: no array.
        """
        return self._prepare(params, donated=donated)

    @property
    def resharding(self) -> tuple[int, float]:
        """Total (bytes, seconds) of weights that were cast, split or resharded so far."""
        return self._prepare.moved_so_far

    def release(self) -> None:
        """Release the device memory of copied weights. The next call copies them again."""
        self._prepare.release()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        n: int = 1,
        *,
        params: Params | Weights,
        max_new_tokens: int | None = None,
    ) -> list[Completion]:
        """Sample `n` completions of each prompt.

        A completion depends only on its prompt, its seed, the number of its sample and the weights. Other prompts
        affect nothing but rounding, which matters where two tokens tie.

        Args:
            prompts: Token ids of each prompt, at least one. The caller checks that they fit the model's positions.
            seeds: Seed of each prompt, of which 64 bits count.
            n: Samples per prompt.
            params: Weights, in the tree of `models.create` or from `weights`.
            max_new_tokens: Maximum tokens per completion, at most the config's; None: the config's.

        Returns:
            Completions in the order of the prompts; the samples of a prompt are adjacent.

        Raises:
            ValueError: A prompt is empty, the numbers of seeds and prompts differ, `n` is below 1, or `max_new_tokens`
                is out of range.
            SamplingError: The model's output for a prompt is not a number. The message names the prompt.
        """
        completions = dict(self.stream(prompts, seeds, n, params=params, max_new_tokens=max_new_tokens))
        return [completions[index] for index in range(len(prompts) * n)]

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        n: int = 1,
        *,
        params: Params | Weights,
        max_new_tokens: int | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index in the list of `sample`, completion) as each completion finishes.

        The arguments are those of `sample`.

        Raises:
            ValueError: As in `sample`.
            SamplingError: The model's output for a prompt is not a number. The message names the prompt.
        """
        requests = self._requests(prompts, seeds, n, max_new_tokens)
        if not requests:
            return
        slots = self._config.slots // shard_count("slots", self._graph.rules)
        config = dataclasses.replace(self._config, samples=min(n, max(1, slots)))
        batch = Batch(self._graph, config, self._prepare(params), max(map(len, prompts)), run=self._run)
        batch.submit(requests)
        parts: dict[int, list[Progress]] = {}
        while batch.busy:
            for progress in batch.step():
                if progress.error:
                    raise SamplingError(f"prompt {progress.id // n}, sample {progress.id % n}: {progress.error}")
                parts.setdefault(progress.id, []).append(progress)
                if progress.finish_reason:
                    yield progress.id, _joined(parts.pop(progress.id))

    def _requests(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], n: int, max_new_tokens: int | None
    ) -> list[Request]:
        config = self._config
        limit = config.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= limit <= config.max_new_tokens:
            raise ValueError(f"max_new_tokens={limit} must be between 1 and the sampler's {config.max_new_tokens}")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one a prompt")
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        requests = []
        for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if not prompt:
                raise ValueError(f"prompt {place} is empty: a prompt needs at least one token")
            tokens = tuple(int(token) for token in prompt)
            requests += [Request(place * n + sample, tokens, limit, int(seed), sample) for sample in range(n)]
        return requests


def _joined(parts: list[Progress]) -> Completion:
    tokens = [token for part in parts for token in part.token_ids]
    log_probs = np.concatenate([part.log_probs for part in parts])
    return Completion(tokens, log_probs, parts[-1].finish_reason)
