"""Agents: the scripted expert, a policy of ours, a language model behind an endpoint, or one that changes nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from environments.actions import STOP
from environments.actions.openai_http import Completion, EndpointError
from environments.protocol import State
from mlagent_jax.agents.actor import Actor, SampledAction
from mlagent_jax.agents.critic import Critic
from mlagent_jax.agents.endpoint import EndpointClient
from mlagent_jax.agents.episodes import Agent, Reply, Trajectory
from mlagent_jax.agents.scripted import ExpertAction, ScriptedExpert, plain_action
from mlagent_jax.runtime import processes

log = logging.getLogger(__name__)


class ScriptedAgent(Agent):
    """Scripted experts, one per trajectory, created by `make` at its first step."""

    def __init__(self, make: Callable[[Trajectory], ScriptedExpert]) -> None:
        self._make = make
        self._experts: dict[str, ScriptedExpert] = {}

    def act(self, trajectories: Sequence[Trajectory], depth: int) -> list[ExpertAction]:
        return [self._propose(trajectory) for trajectory in trajectories]

    def _propose(self, trajectory: Trajectory) -> ExpertAction:
        if trajectory.seed not in self._experts:
            self._experts[trajectory.seed] = self._make(trajectory)
        expert, last, kind = self._experts[trajectory.seed], None, None
        steps = trajectory.steps
        for step in steps[-1:] if steps and isinstance(steps[-1].action, ExpertAction) else steps:
            # An action that was read back from a file is proposed again: it follows from the seed and the states.
            known = step.action if isinstance(step.action, ExpertAction) else None
            last, kind = known or expert.propose(step.job.state, last, kind), step.outcome.kind
        return expert.propose(trajectory.state, last, kind)


class NothingAgent(Agent):
    """Submits the unchanged workspace, in the format of a prompt's `profile`."""

    def __init__(self, profile: str) -> None:
        thoughts = "Reflection: None.\nResearch Plan and Status: None.\nFact Check: None.\nThought: None.\n"
        self._text = (thoughts if profile == "full" else "") + plain_action("Final Answer", final_answer="Done.")

    def act(self, trajectories: Sequence[Trajectory], depth: int) -> list[Reply]:
        return [Reply(self._text)] * len(trajectories)


class PolicyAgent(Agent):
    """Policy of ours or of a Hugging Face folder, sampled here.

    Args:
      actor: Samples actions.
      params: The weights.
      purpose: Maps a trajectory, its depth and its index in the wave to the purpose of a draw; needed because
        trajectories of one task start in the same state.
      critic: Judge of states, if there is one.
    """

    def __init__(
        self,
        actor: Actor,
        params: Any,
        purpose: Callable[[Trajectory, int, int], str],
        critic: Critic | None = None,
    ) -> None:
        self.actor, self.params, self._purpose, self._critic = actor, params, purpose, critic

    def fits(self, state: State) -> bool:
        return self.actor.renderer.fits(state)

    def misfit(self, state: State) -> str:
        return self.actor.renderer.misfit(state)

    def act(self, trajectories: Sequence[Trajectory], depth: int) -> list[SampledAction]:
        purposes = [self._purpose(trajectory, depth, place) for place, trajectory in enumerate(trajectories)]
        return self.actor.act_each(self.params, [trajectory.state for trajectory in trajectories], purposes)

    def values(self, states: Sequence[State]) -> list[float | None]:
        return super().values(states) if self._critic is None else self._critic.values(states)


class EndpointAgent(Agent):
    """Language model behind an endpoint, with the same prompt as a policy of ours.

    With several processes only the first has a client; it sends the requests and shares the answers.

    Args:
      client: Client of the endpoint.
      prompt: Maps a state to the prompt.
      seed: Maps a trajectory and its depth to the request's seed, so that equal states of two trajectories get separate
        replies.
      must_answer: Whether a wave without any reply is an error.
    """

    def __init__(
        self,
        client: EndpointClient | None,
        prompt: Callable[[State], str],
        seed: Callable[[Trajectory, int], int],
        must_answer: bool = False,
    ) -> None:
        self._client, self._prompt, self._seed, self._must_answer = client, prompt, seed, must_answer

    def act(self, trajectories: Sequence[Trajectory], depth: int) -> list[Reply | None]:
        """Return a reply for each of `trajectories`, None if all attempts failed.

        Raises:
          EndpointError: There is none for any at the first step, or at any step and `must_answer`.
          BudgetError: The budget is spent.
        """
        replies = processes.agree(
            lambda: [reply and dataclasses.asdict(reply) for reply in self._ask(trajectories, depth)]
        )
        return [reply and Reply(**reply) for reply in replies]

    def _ask(self, trajectories: Sequence[Trajectory], depth: int) -> list[Reply | None]:
        conversations = [[{"role": "user", "content": self._prompt(t.state)}] for t in trajectories]
        answers = self._client.chat_many(conversations, [self._seed(t, depth) for t in trajectories])
        errors = [answer for answer in answers if isinstance(answer, EndpointError)]
        if errors and len(errors) == len(answers) and (self._must_answer or depth == 0):
            raise errors[0]
        if errors:
            log.warning("%d of %d trajectories end: no answer (%s)", len(errors), len(answers), errors[0])
        return [None if isinstance(answer, EndpointError) else self._reply(answer) for answer in answers]

    def _reply(self, answer: Completion) -> Reply:
        prompt, made = (answer.tokens.get(name, 0) for name in ("prompt_tokens", "completion_tokens"))
        text = answer.text.split(f"\n{STOP}")[0]  # An observation that the model invents is not part of its action.
        return Reply(text, answer.finish_reason == "length", prompt, made, self._client.config.cost(prompt, made))
