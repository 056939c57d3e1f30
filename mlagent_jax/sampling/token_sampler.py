"""Token ids in, completions out: what reinforcement learning samples with.

Weights come with each call: they are the trainer's own, and there is nothing to synchronise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlagent_jax.models import Graph, Params
from mlagent_jax.sampling.batch import Batch, FirstRuns
from mlagent_jax.sampling.config import Completion, Progress, Request, SamplerConfig


class TokenSampler:
    """Samples completions of prompts; holds no weights and, between calls, no device memory."""

    def __init__(self, graph: Graph, config: SamplerConfig) -> None:
        self._graph, self._config = graph, config
        self._run = FirstRuns()

    @property
    def config(self) -> SamplerConfig:
        """What this sampler was made with."""
        return self._config

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        n: int = 1,
        *,
        params: Params,
        max_new_tokens: int | None = None,
    ) -> list[Completion]:
        """`n` completions of each prompt, as a list in the order of the prompts, samples of a prompt together.

        A completion follows from its prompt, its seed, the number of its sample and the weights: not from what else is
        sampled with it, but for rounding where two tokens tie.

        Args:
            prompts: Token ids, at least one each, at most the largest bucket.
            seeds: One a prompt, 64 bits of each count.
            n: Samples a prompt.
            params: The weights, in the tree of `models.create`, stacked.
            max_new_tokens: A lower limit than the config's, for this call.

        Raises:
            ValueError: For an empty or too long prompt, another number of seeds than of prompts, an n below 1, or a
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
        params: Params,
        max_new_tokens: int | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """As `sample`, yielding (place in its list, completion) as each is finished."""
        requests = self._requests(prompts, seeds, n, max_new_tokens)
        if not requests:
            return
        batch = Batch(self._graph, self._config, params, max(map(len, prompts)), run=self._run)
        batch.submit(requests)
        parts: dict[int, list[Progress]] = {}
        while batch.busy:
            for progress in batch.step():
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
            config.bucket(len(prompt))
            tokens = tuple(int(token) for token in prompt)
            requests += [Request(place * n + sample, tokens, limit, int(seed), sample) for sample in range(n)]
        return requests


def _joined(parts: list[Progress]) -> Completion:
    tokens = [token for part in parts for token in part.token_ids]
    log_probs = np.concatenate([part.log_probs for part in parts])
    return Completion(tokens, log_probs, parts[-1].finish_reason)
