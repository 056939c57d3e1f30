"""Whole episodes, for episode-wise RL: the baseline that step-wise RL is compared with.

Every action of an episode is trained on one number, what the episode reached (PAPER: maximise E R(tau)); each costs a
whole trajectory of executions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from environments.protocol import Job, Outcome, OutcomeKind, State
from environments.rewards import compute
from mlagent_jax.agent.actor import Actor, SampledAction
from mlagent_jax.agent.collector import is_masked
from mlagent_jax.agent.rollouts import Taken


@dataclasses.dataclass
class _Episode:
    group: int
    state: State
    ended: bool = False
    steps: list[tuple[SampledAction, Job, Outcome]] = dataclasses.field(default_factory=list)


class EpisodePlayer:
    """Plays episodes side by side, a wave of jobs a step.

    Args:
      actor: tells which states can still be rendered.
      job: (action, policy version, sample index) to a job.
      gather: jobs to outcomes, in order.
    """

    def __init__(
        self,
        actor: Actor,
        job: Callable[[SampledAction, int, int], Job],
        gather: Callable[[Sequence[Job], Callable[[Outcome], None] | None], list[Outcome]],
    ) -> None:
        self._actor, self._job, self._gather = actor, job, gather

    def play(
        self,
        sample: Callable[[Sequence[State], int, str], list[SampledAction]],
        starts: Sequence[State],
        trajectories: int,
        steps: int,
        reward: str,
        version: int,
        show: Callable[[Outcome], None] | None = None,
    ) -> list[Taken]:
        """`trajectories` episodes of at most `steps` steps from each of `starts`.

        Args:
          sample: (states, samples, purpose) to actions of the current policy.
          reward: name in environments.rewards, of an episode.
          version: of the policy.
          show: called with each outcome.

        Returns:
          every action with its episode's reward (None where one of its steps was masked); a group a start.
        """
        episodes = [_Episode(i, state) for i, state in enumerate(starts) for _ in range(trajectories)]
        taken = 0
        for depth in range(steps):
            active = [e for e in episodes if not e.ended and self._actor.renderer.fits(e.state)]
            if not active:
                break
            actions = sample([e.state for e in active], 1, f"rl/{version}/{depth}")
            jobs = [self._job(action, version, taken + i) for i, action in enumerate(actions)]
            taken += len(jobs)
            outcomes = self._gather(jobs, show)
            for episode, action, job, outcome in zip(active, actions, jobs, outcomes, strict=True):
                episode.steps.append((action, job, outcome))
                episode.ended = outcome.final or is_masked(outcome)
                if not episode.ended:
                    episode.state = outcome.next_state(job)
        return [
            Taken(action, job, outcome, worth, episode.group, version)
            for episode in episodes
            for worth in [episode_reward(reward, [outcome for _, _, outcome in episode.steps])]
            for action, job, outcome in episode.steps
        ]


def episode_reward(reward: str, outcomes: Sequence[Outcome]) -> float | None:
    """R(tau): the reward called `reward` of one step from the start to the best submission of the episode.

    That of the last step where nothing was graded; None where a step was masked, for what it would have reached is not
    known.
    """
    if any(map(is_masked, outcomes)) or not outcomes:
        return None
    scored = [outcome for outcome in outcomes if outcome.kind is OutcomeKind.SCORED]
    if not scored:
        return compute(reward, outcomes[-1])
    scale = scored[0].scale
    best = max(scored, key=lambda outcome: scale.delta(scale.m_init, outcome.metric_after))
    return compute(reward, dataclasses.replace(best, metric_before=scale.m_init))
