"""Token ids in, completions out: what reinforcement learning samples with.

Weights come with each call: they are the trainer's own, and there is nothing to synchronise. To sample on while the
trainer's arrays are donated to its next update, take `weights` of them first.
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
    """Samples completions of prompts; between calls it holds, until `release`, no device memory but for those of the
    last weights that could not be used where they are.

    Args:
        graph: The model.
        config: What is sampled, and the shapes of the programs.
        dispatch_lock: Lock held while a program is handed to the devices; see `FirstRuns`.
        mesh: What the weights are laid out on; None or one device: they are used where they are.
        rules: Rows of the sampler's sharding rules to change; see `sampling.layout`.

    Raises:
        ValueError: `rules` cannot be read.
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
        """What this sampler was made with."""
        return self._config

    @property
    def compilations(self) -> int:
        """Programs that were compiled for this sampler so far."""
        return self._run.count

    def weights(self, params: Params, donated: Params | None = None) -> Weights:
        """`params` as decoding reads them, to be given to several calls; arrays among `donated` are copied.

        What was made of other parameters before is let go first, but for what these share with them: keep no `Weights`
        of theirs, and there is one copy at a time.
        """
        return self._prepare(params, donated=donated)

    @property
    def resharding(self) -> tuple[int, float]:
        """(bytes, seconds) of all weights that were cast, cut or laid out anew so far."""
        return self._prepare.moved_so_far

    def release(self) -> None:
        """Let the device memory go that is held for the next call with the same weights."""
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
        """`n` completions of each prompt, as a list in the order of the prompts, samples of a prompt together.

        A completion follows from its prompt, its seed, the number of its sample and the weights: not from what else is
        sampled with it, but for rounding where two tokens tie.

        Args:
            prompts: Token ids, at least one each. How many the model is good for is the caller's to know.
            seeds: One a prompt, 64 bits of each count.
            n: Samples a prompt.
            params: The weights, in the tree of `models.create`, or of `weights`.
            max_new_tokens: A lower limit than the config's, for this call.

        Raises:
            ValueError: For an empty prompt, another number of seeds than of prompts, an n below 1, or a
                limit above the config's.
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
        """As `sample`, yielding (place in its list, completion) as each is finished.

        Raises:
            SamplingError: The model's output for a prompt is not a number; the message names the prompt.
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
