"""Trajectories that are played concurrently: in evaluation, in episode-wise RL and in collection.

Each wave executes one action in every active trajectory. A trajectory's minutes count the seconds of its own replies
and scripts, not time in the queue or waiting for other trajectories. A step that started in time counts. Agents'
answers are a function of the seed, the states and stored answers: replayed after an interruption, the same jobs are
submitted and find their outcomes in the queue.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from environments.protocol import Job, Outcome, OutcomeKind, State
from mlagent_jax.agents.actor import SampledAction
from mlagent_jax.agents.job_client import is_masked
from mlagent_jax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Reply:
    """Action that was not sampled here, with its cost."""

    text: str
    truncated: bool = False
    """Whether the action was cut at the token limit; it then counts as invalid."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Cost in the currency of `config.endpoint`'s prices."""


Action = Reply | SampledAction


class Step(NamedTuple):
    """One step of a trajectory, taken in `job.state`."""

    action: Action
    job: Job
    outcome: Outcome
    seconds: float
    """Seconds of the action: its share of the wave's request."""


@dataclasses.dataclass
class Trajectory:
    """One trajectory in progress."""

    split: str
    index: int
    """Index among the trajectories with the same start."""
    state: State
    seed: str = ""
    """Seed for agents that draw; unique within a run."""
    steps: list[Step] = dataclasses.field(default_factory=list)
    ended: bool = False
    lost: str = ""
    """Reason why no action could be obtained at a step, which is not the agent's fault; empty: none was missing."""
    cut: str = ""
    """Reason why it ended before its limits with the steps that it has; empty: it did not."""

    @property
    def seconds(self) -> float:
        """Return the seconds of its replies and scripts."""
        return sum((step.seconds + step.outcome.seconds for step in self.steps), 0.0)

    def take(self, step: Step) -> None:
        """Append `step`. After an infrastructure error the trajectory ends in the state before it."""
        self.steps.append(step)
        self.ended = step.outcome.final or is_masked(step.outcome)
        if not is_masked(step.outcome):
            self.state = step.outcome.next_state(step.job)


class Agent(Protocol):
    """Source of actions."""

    def fits(self, state: State) -> bool:
        """Return whether the agent can act in `state` at all."""
        del state
        return True

    def act(self, trajectories: Sequence[Trajectory], depth: int) -> Sequence[Action | None]:
        """Return an action for each of `trajectories`, all at `depth` steps; None if none could be obtained."""
        ...

    def values(self, states: Sequence[State]) -> list[float | None]:
        """Return a critic's estimate of the reward of a step from each of `states`; None without a critic."""
        return [None] * len(states)

    def misfit(self, state: State) -> str:
        """Return why the agent cannot act in `state`, which does not fit."""
        del state
        return "the agent cannot act in this state"


def play(
    trajectories: Sequence[Trajectory],
    agent: Agent,
    job: Callable[[Trajectory, Action], Job],
    execute: Callable[[Sequence[Job]], Sequence[Outcome]],
    steps: int,
    minutes: float = math.inf,
) -> Iterator[list[tuple[Trajectory, Step]]]:
    """Play `trajectories` to their ends and append their steps; yield each executed wave.

    Args:
      trajectories: Trajectories at their start.
      agent: Source of actions.
      job: Maps a trajectory and its next action to a job.
      execute: Maps jobs to outcomes, in order.
      steps: Maximum steps per trajectory.
      minutes: Time limit per trajectory; no step starts after it.
    """
    for trajectory in trajectories:
        if not agent.fits(trajectory.state):
            trajectory.ended, trajectory.lost = True, agent.misfit(trajectory.state)
    for depth in range(steps):
        active = [t for t in trajectories if not t.ended and t.seconds < 60 * minutes]
        for trajectory in active:
            if depth and not agent.fits(trajectory.state):
                trajectory.ended, trajectory.cut = True, agent.misfit(trajectory.state)
        active = [t for t in active if not t.ended]
        actions, seconds = _ask(agent, active, depth) if active else ([], 0.0)
        for trajectory, action in zip(active, actions, strict=True):
            if action is None:
                trajectory.ended, trajectory.lost = True, "the agent gave no answer"
        pending = [(t, action, job(t, action)) for t, action in zip(active, actions, strict=True) if action is not None]
        if not pending:
            return
        wave = []
        outcomes = execute([job for *_, job in pending])
        for (trajectory, action, its_job), outcome in zip(pending, outcomes, strict=True):
            step = Step(action, its_job, outcome, seconds)
            trajectory.take(step)
            wave.append((trajectory, step))
        yield wave


def best_submission(outcomes: Iterable[Outcome]) -> Outcome | None:
    """Return the outcome with the best metric on the reward half, the first of equal ones; None if nothing was
    scored."""
    scored = [outcome for outcome in outcomes if outcome.kind is OutcomeKind.SCORED]
    return max(scored, key=lambda outcome: outcome.scale.delta(0.0, outcome.metric_after), default=None)


def _ask(agent: Agent, trajectories: Sequence[Trajectory], depth: int) -> tuple[Sequence[Action | None], float]:
    """Return the agent's actions, and the seconds per action."""
    started = time.monotonic()
    actions = agent.act(trajectories, depth)
    # One clock for all processes, since minutes decide whether a trajectory continues.
    return actions, processes.agree(lambda: time.monotonic() - started) / len(trajectories)
