"""The policy as an actor: maps states to sampled actions, with the tokens and log-probs that training needs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from environments.protocol import State
from mlagent_jax.agents.prompts import Renderer
from mlagent_jax.sampling import TokenSampler, Weights


@dataclasses.dataclass(frozen=True)
class SampledAction:
    """One action from one state."""

    state: State
    sample: int
    """Index among the actions from this state."""
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    """Behaviour log-prob of each token, at the sampling temperature."""
    text: str
    truncated: bool
    """Whether the action was cut at the token limit; it then counts as invalid."""
    cost: ClassVar[float] = 0.0
    """Cost of its tokens: none."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)


class Actor:
    """Samples actions with the parameters of each call.

    Args:
      sampler: Sampling engine.
      renderer: Renderer of states as prompts.
      seed: Seed of the run.
    """

    def __init__(self, sampler: TokenSampler, renderer: Renderer, seed: int) -> None:
        self._sampler, self.renderer, self._seed = sampler, renderer, seed

    def act(self, params: Any, states: Sequence[State], samples: int, purpose: str) -> list[SampledAction]:
        """Sample `samples` actions from each of `states`, grouped by state.

        The draws depend only on the run's seed, `purpose`, the state, its index in `states` and the sample's index. The
        same call after a restart draws the same actions, whose results are in the queue.
        """
        groups = dict(self.act_by_state(params, states, samples, purpose))
        return [action for index in range(len(states)) for action in groups[index]]

    def act_by_state(
        self, params: Any, states: Sequence[State], samples: int, purpose: str
    ) -> Iterator[tuple[int, list[SampledAction]]]:
        """Do as `act`, but yield (index of the state, its actions) as soon as a state's actions are complete."""
        seeds = [seed_of(self._seed, purpose, index, state.id) for index, state in enumerate(states)]
        return self._act(params, states, samples, seeds)

    def weights(self, params: Any, donated: Any) -> Weights:
        """Prepare `params` for several calls, which may continue while the arrays of `donated` are updated in place."""
        return self._sampler.weights(params, donated)

    @property
    def resharding(self) -> tuple[int, float]:
        """Return bytes and seconds of all weights that were laid out for sampling so far."""
        return self._sampler.resharding

    def release(self) -> None:
        """Release device memory that is kept for further calls with the same parameters."""
        self._sampler.release()

    def act_each(self, params: Any, states: Sequence[State], purposes: Sequence[str]) -> list[SampledAction]:
        """Sample one action from each of `states`, each with its own purpose, independent of the rest of the batch."""
        seeds = [seed_of(self._seed, purpose, state.id) for purpose, state in zip(purposes, states, strict=True)]
        groups = dict(self._act(params, states, 1, seeds))
        return [groups[index][0] for index in range(len(states))]

    def _act(
        self, params: Any, states: Sequence[State], samples: int, seeds: list[int]
    ) -> Iterator[tuple[int, list[SampledAction]]]:
        prompts = [self.renderer.encode(state) for state in states]
        groups: dict[int, dict[int, SampledAction]] = {}
        for index, completion in self._sampler.stream(prompts, seeds, samples, params=params):
            place, sample = divmod(index, samples)
            group = groups.setdefault(place, {})
            group[sample] = SampledAction(
                state=states[place],
                sample=sample,
                prompt=tuple(prompts[place]),
                tokens=tuple(completion.token_ids),
                log_probs=tuple(map(float, completion.log_probs)),
                text=self.renderer.decode_action(completion.token_ids),
                truncated=completion.finish_reason == "length",
            )
            if len(group) == samples:
                yield place, [group[sample] for sample in range(samples)]


def seed_of(*parts: object) -> int:
    """Return a 31-bit seed from the texts of `parts`."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1
