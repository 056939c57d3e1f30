"""Whoever can be evaluated, behind one small interface: states in, replies out, with what a reply took.

A reply depends on the seed, the state and the trajectory alone (an endpoint's is kept when it was given), so that an
evaluation that was stopped takes the same actions again and finds their results in the queue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from environments.openai_http import EndpointError
from environments.protocol import OutcomeKind, State
from mlagent_jax.agent.expert import Move, ScriptedExpert, plain_action
from mlagent_jax.agent.prompts import prompt_text
from mlagent_jax.evaluation.names import AgentSpec
from mlagent_jax.parallelism import processes

if TYPE_CHECKING:
    from mlagent_jax.agent.actor import Actor, SampledAction
    from mlagent_jax.agent.endpoint import EndpointClient
    from mlagent_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Turn:
    """A state in which an agent is to act, and how the trajectory came to it."""

    state: State
    trajectory: int
    depth: int
    """Steps taken."""
    last: OutcomeKind | None = None
    """How the last step ended."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """An agent's next action, and what it took."""

    text: str
    truncated: bool = False
    """Cut at the limit of tokens: it counts as invalid."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """Of this reply: its share of a batch that was sampled together."""
    cost: float = 0.0
    """In the currency of `config.endpoint`'s prices."""


class Agent(Protocol):
    """Acts in states."""

    def prompt(self, state: State) -> str:
        """What it is shown."""

    def fits(self, state: State) -> bool:
        """Whether it can act there at all."""

    def reply(self, turns: Sequence[Turn]) -> list[Reply | None]:
        """A reply a turn, None where there is none (our failure, or an endpoint's: the episode is left out)."""


class PolicyAgent:
    """Weights of ours or of a Hugging Face folder, sampled here."""

    def __init__(self, actor: Actor, params: Any) -> None:
        self.actor, self._params = actor, params

    def prompt(self, state: State) -> str:
        return self.actor.renderer.text(state)

    def fits(self, state: State) -> bool:
        return self.actor.renderer.fits(state)

    def act(self, states: Sequence[State], samples: int) -> list[SampledAction]:
        """Several actions from each of some fixed states."""
        return self.actor.act(self._params, states, samples, "evaluate")

    def reply(self, turns: Sequence[Turn]) -> list[Reply | None]:
        # Trajectories of one task start in the same state: the purpose tells their draws apart.
        purposes = [f"episode/{turn.depth}/{turn.trajectory}" for turn in turns]
        started = time.monotonic()
        actions = self.actor.act_each(self._params, [turn.state for turn in turns], purposes)
        # One clock for all processes: an episode's minutes decide whether it goes on.
        seconds = processes.agree(lambda: time.monotonic() - started) / max(1, len(turns))
        return [
            Reply(action.text, action.truncated, len(action.prompt), len(action.tokens), seconds) for action in actions
        ]


class ExpertAgent:
    """The scripted expert, without ideas in its prompt: one expert a trajectory."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._experts: dict[tuple[str, int], ScriptedExpert] = {}
        self._moves: dict[tuple[str, int], Move] = {}

    def prompt(self, state: State) -> str:
        return prompt_text(self._run.config.prompt, self._run.specs[state.task], state)

    def fits(self, state: State) -> bool:
        return True

    def reply(self, turns: Sequence[Turn]) -> list[Reply | None]:
        return [Reply(self._move(turn).action) for turn in turns]

    def _move(self, turn: Turn) -> Move:
        config, name = self._run.config, turn.state.task_name
        key = (name, turn.trajectory)
        if key not in self._experts:
            seed = f"{config.seed}/evaluate/{name}/{turn.trajectory}"
            spec = self._run.tasks[name].spec
            self._experts[key] = ScriptedExpert(spec, turn.state.script, config.collect, config.prompt.profile, seed)
        self._moves[key] = self._experts[key].propose(turn.state, self._moves.get(key), turn.last)
        return self._moves[key]


class NothingAgent(ExpertAgent):
    """Hands in what it was given."""

    def _move(self, turn: Turn) -> Move:
        action = plain_action("Final Answer", final_answer="Done.")
        if self._run.config.prompt.profile == "full":
            action = f"Reflection: None.\nResearch Plan and Status: None.\nFact Check: None.\nThought: None.\n{action}"
        return Move(action)


class EndpointAgent:
    """A language model served elsewhere, shown the prompt that a policy of ours is shown.

    Of several processes the first one asks, and tells the others; they have no client.
    """

    def __init__(self, run: Run, client: EndpointClient | None) -> None:
        self._run, self._client = run, client

    def prompt(self, state: State) -> str:
        return prompt_text(self._run.config.prompt, self._run.specs[state.task], state)

    def fits(self, state: State) -> bool:
        return True

    def reply(self, turns: Sequence[Turn]) -> list[Reply | None]:
        told = processes.agree(lambda: [reply and dataclasses.asdict(reply) for reply in self._ask(turns)])
        return [reply and Reply(**reply) for reply in told]

    def _ask(self, turns: Sequence[Turn]) -> list[Reply | None]:
        config = self._run.config
        conversations = [[{"role": "user", "content": self.prompt(turn.state)}] for turn in turns]
        # A seed a trajectory and step: equal states of two trajectories get replies of their own.
        seeds = [(config.seed * 1009 + turn.trajectory) * 1009 + turn.depth for turn in turns]
        started = time.monotonic()
        answers = self._client.chat_many(conversations, seeds)
        seconds = (time.monotonic() - started) / max(1, len(turns))
        return [None if isinstance(answer, EndpointError) else self._reply(answer, seconds) for answer in answers]

    def _reply(self, answer: Any, seconds: float) -> Reply:
        prices = self._run.config.endpoint
        prompt, made = (answer.tokens.get(name, 0) for name in ("prompt_tokens", "completion_tokens"))
        cost = (prompt * prices.prompt_price + made * prices.completion_price) / 1e6
        text = answer.text.split("\nObservation:")[0]  # What a model goes on to invent is not its action.
        return Reply(text, answer.finish_reason == "length", prompt, made, seconds, cost)


@contextlib.contextmanager
def open_agent(run: Run, spec: AgentSpec) -> Iterator[Agent]:
    """The agent that `spec` names, for as long as it is needed.

    Raises:
      ConfigError: a checkpoint cannot be read, or no endpoint is configured.
    """
    from mlagent_jax.agent.endpoint import EndpointClient
    from mlagent_jax.policy import checkpoint_policy, make_actor, trained_policy

    if spec.kind == "expert":
        yield ExpertAgent(run)
    elif spec.kind == "nothing":
        yield NothingAgent(run)
    elif spec.kind == "endpoint":
        folder = Path(run.workdir) / "endpoint"
        with contextlib.ExitStack() as held:
            clients: list[EndpointClient] = []
            processes.agree(lambda: clients.append(held.enter_context(EndpointClient(run.config.endpoint, folder))))
            yield EndpointAgent(run, *clients or [None])
    else:
        policy = checkpoint_policy(run, spec.place) if spec.kind == "hf" else trained_policy(run, spec.kind, spec.step)
        yield PolicyAgent(make_actor(run, policy), policy.params)
