"""Trajectories, played side by side: in evaluation, in episode-wise RL and where experts are collected from.

A wave of steps at a time: one action in each trajectory that goes on, all of them executed together. A trajectory's
minutes are its own: seconds of its replies and of its scripts; waiting in the queue, and for one another, is not its.
A step that was begun in time counts. What agents answer is a function of the seed, of the states and of answers that
are kept: played again after an interruption, the same jobs are handed out, and find their outcomes in the queue.
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
    """An action that was not sampled here, and what it took."""

    text: str
    truncated: bool = False
    """Cut at the limit of tokens: it counts as invalid."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of `config.endpoint`'s prices."""


Action = Reply | SampledAction


class Step(NamedTuple):
    """One step of a trajectory; `job.state` is where it was taken."""

    action: Action
    job: Job
    outcome: Outcome
    seconds: float
    """Of the action: its share of a wave that was asked for together."""


@dataclasses.dataclass
class Trajectory:
    """One trajectory under way."""

    split: str
    index: int
    """Its place among those that start as it does."""
    state: State
    seed: str = ""
    """Of its own, where its agent draws from one: no two trajectories of a run share one."""
    steps: list[Step] = dataclasses.field(default_factory=list)
    ended: bool = False
    lost: bool = False
    """No action could be had: not the agent's doing."""

    @property
    def seconds(self) -> float:
        """Of its replies and scripts."""
        return sum((step.seconds + step.outcome.seconds for step in self.steps), 0.0)

    def take(self, step: Step) -> None:
        """Go on after `step`. One that our side could not execute says nothing: the trajectory ends before it."""
        self.steps.append(step)
        self.ended = step.outcome.final or is_masked(step.outcome)
        if not is_masked(step.outcome):
            self.state = step.outcome.next_state(step.job)


class Agent(Protocol):
    """Whoever acts."""

    def fits(self, state: State) -> bool:
        """Whether it can act there at all."""
        del state
        return True

    def act(self, trajectories: Sequence[Trajectory], depth: int) -> Sequence[Action | None]:
        """An action in each of `trajectories`, which go on at `depth` steps; None where none could be had."""
        ...


def play(
    trajectories: Sequence[Trajectory],
    agent: Agent,
    job: Callable[[Trajectory, Action], Job],
    execute: Callable[[Sequence[Job]], Sequence[Outcome]],
    steps: int,
    minutes: float = math.inf,
) -> Iterator[list[tuple[Trajectory, Step]]]:
    """Play `trajectories` to their ends, which keep their steps; yields each wave when it was taken.

    Args:
      trajectories: all at their start.
      agent: acts in them.
      job: a trajectory and the action that is to be taken in it, to the job.
      execute: jobs to outcomes, in order.
      steps: of a trajectory, at most.
      minutes: of a trajectory, likewise; no step begins after them.
    """
    for depth in range(steps):
        active = [t for t in trajectories if not t.ended and t.seconds < 60 * minutes and agent.fits(t.state)]
        actions, seconds = _ask(agent, active, depth) if active else ([], 0.0)
        for trajectory, action in zip(active, actions, strict=True):
            trajectory.ended = trajectory.lost = action is None
        taking = [(t, action, job(t, action)) for t, action in zip(active, actions, strict=True) if action is not None]
        if not taking:
            return
        wave = []
        outcomes = execute([job for *_, job in taking])
        for (trajectory, action, its_job), outcome in zip(taking, outcomes, strict=True):
            step = Step(action, its_job, outcome, seconds)
            trajectory.take(step)
            wave.append((trajectory, step))
        yield wave


def best_submission(outcomes: Iterable[Outcome]) -> Outcome | None:
    """The outcome with the best metric on the reward half, of equal ones the first; None where nothing was graded."""
    scored = [outcome for outcome in outcomes if outcome.kind is OutcomeKind.SCORED]
    return max(scored, key=lambda outcome: outcome.scale.delta(0.0, outcome.metric_after), default=None)


def _ask(agent: Agent, trajectories: Sequence[Trajectory], depth: int) -> tuple[Sequence[Action | None], float]:
    """The agent's actions, and the seconds of one."""
    started = time.monotonic()
    actions = agent.act(trajectories, depth)
    # One clock for all processes: a trajectory's minutes decide whether it goes on.
    return actions, processes.agree(lambda: time.monotonic() - started) / len(trajectories)
