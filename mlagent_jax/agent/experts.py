"""Who takes the steps of a collection: the scripted expert, a language model behind an endpoint, or a policy of ours.

All three answer a wave of trajectories with one `Move` each, or None where one can go no further; what they answer is
a function of the seed, the states and, for a language model, of answers that are kept. So an interrupted collection
takes the same steps again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from environments.openai_http import EndpointError
from environments.protocol import OutcomeKind, State
from environments.tasks.base import TaskSpec
from mlagent_jax.agent.actor import Actor
from mlagent_jax.agent.endpoint import EndpointClient
from mlagent_jax.agent.expert import Move, ScriptedExpert
from mlagent_jax.agent.prompts import prompt_text
from mlagent_jax.config import PromptConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Trajectory:
    """One trajectory under way."""

    split: str
    index: int
    state: State
    seed: str
    """Of its own: no two trajectories of a run share one."""
    move: Move | None = None
    """The last one."""
    kind: OutcomeKind | None = None
    """How it ended."""
    ended: bool = False


class Expert(Protocol):
    """Takes a step in each of several trajectories."""

    def propose(self, trajectories: Sequence[Trajectory], depth: int) -> list[Move | None]:
        """The next move of each, None where there is none."""
        ...


class ScriptedExperts:
    """A scripted expert for every trajectory."""

    def __init__(self, make: Callable[[Trajectory], ScriptedExpert], trajectories: Sequence[Trajectory]) -> None:
        self._experts = {t.seed: make(t) for t in trajectories}
        for t in trajectories:
            t.state = dataclasses.replace(t.state, ideas=self._experts[t.seed].ideas)

    def propose(self, trajectories: Sequence[Trajectory], depth: int) -> list[Move | None]:
        return [self._experts[t.seed].propose(t.state, t.move, t.kind) for t in trajectories]


class EndpointExpert:
    """A language model: reads the same prompt as a policy, and answers with the action's text."""

    def __init__(self, client: EndpointClient, config: PromptConfig, specs: Mapping[str, TaskSpec]) -> None:
        self._client, self._config, self._specs = client, config, specs

    def propose(self, trajectories: Sequence[Trajectory], depth: int) -> list[Move | None]:
        """A trajectory that gets no answer after all attempts ends there.

        Raises:
          EndpointError: none gets one.
          BudgetError: the budget is spent.
        """
        asked = [
            [{"role": "user", "content": prompt_text(self._config, self._specs[t.state.task], t.state)}]
            for t in trajectories
        ]
        answers = self._client.chat_many(asked, [_seed(t.seed, depth) for t in trajectories])
        errors = [answer for answer in answers if isinstance(answer, EndpointError)]
        if errors and len(errors) == len(answers):
            raise errors[0]
        if errors:
            log.warning("%d of %d trajectories end: no answer (%s)", len(errors), len(answers), errors[0])
        return [
            None if isinstance(answer, EndpointError) else Move(answer.text, truncated=answer.finish_reason == "length")
            for answer in answers
        ]


class PolicyExpert:
    """A policy of ours."""

    def __init__(self, actor: Actor, params: Any) -> None:
        self._actor, self._params = actor, params

    def propose(self, trajectories: Sequence[Trajectory], depth: int) -> list[Move | None]:
        """A trajectory whose prompt exceeds its limit ends there."""
        fitting = [t for t in trajectories if self._actor.renderer.fits(t.state)]
        actions = self._actor.act(self._params, [t.state for t in fitting], 1, f"collect/{depth}") if fitting else []
        moves = {t.seed: Move(a.text, truncated=a.truncated) for t, a in zip(fitting, actions, strict=True)}
        return [moves.get(t.seed) for t in trajectories]


def _seed(*parts: object) -> int:
    """31 bits from anything that has a text."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big") >> 1
