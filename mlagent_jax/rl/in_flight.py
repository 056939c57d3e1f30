"""Actions between sampler and update: handed out in groups, returned in batches.

A group is the actions that one policy version sampled from one state; estimators that compare actions need it complete.
`InFlight` holds the groups in flight, returns the next batch when it is complete, and leaves stragglers for a later
batch, within the bound of staleness.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from environments.protocol import Job, Outcome, State
from environments.rewards import compute
from mlagent_jax.agents.actor import SampledAction
from mlagent_jax.agents.episodes import Trajectory, best_submission
from mlagent_jax.agents.job_client import POLL_SECONDS, JobClient, is_masked
from mlagent_jax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Group:
    """Actions of one policy version from one state."""

    version: int
    index: int
    """Number among all groups of the run, so that no two jobs of a run are equal."""
    actions: tuple[SampledAction, ...]
    jobs: tuple[Job, ...]

    def to_dict(self) -> dict[str, Any]:
        """Without what follows from the rest: the jobs, and the tokens of the prompt, most of all there is."""
        kept = ("sample", "tokens", "log_probs", "text", "truncated")
        actions = [{name: getattr(action, name) for name in kept} for action in self.actions]
        state = dataclasses.asdict(self.actions[0].state)
        return {"version": self.version, "index": self.index, "state": state, "actions": actions}

    @staticmethod
    def actions_of(data: dict[str, Any], encode: Callable[[State], Sequence[int]]) -> tuple[SampledAction, ...]:
        """The actions in `to_dict`'s result, also after it was JSON; `encode` makes a state's prompt again."""
        state = State.from_dict(data["state"])
        prompt = tuple(encode(state))
        return tuple(
            SampledAction(
                **action | {name: tuple(action[name]) for name in ("tokens", "log_probs")}, state=state, prompt=prompt
            )
            for action in data["actions"]
        )


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """One action with its outcome: a row of a batch."""

    action: SampledAction
    job: Job
    outcome: Outcome
    reward: float | None
    """Reward that the action is trained on; None: the outcome is masked."""
    group: int
    version: int


def rows_of(episodes: Sequence[Trajectory], reward: str, version: int) -> list[TrainingRow]:
    """Return every action of whole episodes of the policy of `version`, trained on the result of its episode.

    Episodes from the same start are a group.
    """
    return [
        TrainingRow(step.action, step.job, step.outcome, worth, episode.index, version)
        for episode in episodes
        for worth in [episode_reward(reward, [step.outcome for step in episode.steps])]
        for step in episode.steps
    ]


def episode_reward(reward: str, outcomes: Sequence[Outcome]) -> float | None:
    """Return R(tau): the named reward of one step from the start to the best submission of an episode.

    If nothing was graded, it is the reward of the last step. None: a step is masked, so the result is unknown.
    """
    if any(map(is_masked, outcomes)) or not outcomes:
        return None
    best = best_submission(outcomes)
    if best is None:
        return compute(reward, outcomes[-1])
    return compute(reward, dataclasses.replace(best, metric_before=best.scale.m_init))


class InFlight:
    """Groups that were handed out and not trained on yet, oldest first. One thread may `add` while another takes.

    It limits how many policy versions an in-flight group may lag: the trainer samples only while there is `room`, and
    waits for a group at the bound, so that no executed action is discarded for its age. If stragglers may be left
    behind, one version is reserved for them: the trainer samples one batch less ahead, since otherwise every oldest
    batch would be at the bound. In a multi-host run all processes take the same batch, chosen by the first one's clock.

    Args:
      job_client: client that submits jobs and returns outcomes.
      batch: number of groups per batch.
      max_staleness: maximum policy versions between sampling and training.
      patience_seconds: time that a batch waits for its oldest groups while younger ones could replace them; 0: no
        limit. A group at the bound of staleness is always waited for.
    """

    def __init__(self, job_client: JobClient, batch: int, max_staleness: int, patience_seconds: float = 0.0) -> None:
        self._job_client = job_client
        self._batch, self._max_staleness, self._patience = batch, max_staleness, patience_seconds
        self._ahead = max(0, max_staleness - 1) if patience_seconds else max_staleness  # batches
        self._groups: list[Group] = []
        self._found: dict[str, Outcome] = {}
        self._unfinished: set[int] = set()  # indices of groups whose batch is not complete
        self._lock = threading.Lock()  # held while `_groups` is replaced

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def room(self) -> int:
        """Return the number of batches that may be sampled now without exceeding the bound."""
        return max(0, self._ahead + 1 - len(self) // self._batch)

    def add(self, groups: Sequence[Group], more: bool = False) -> None:
        """Submit the jobs of `groups`; with `more`, further groups of the same batch follow."""
        if groups:
            self._job_client.submit([job for group in groups for job in group.jobs])
        with self._lock:
            # First: a signal between the two leaves no part of a batch that `to_list` would take for a whole one.
            self._unfinished = {*self._unfinished, *(group.index for group in groups)} if more else set()
            self._groups = sorted((*self._groups, *groups), key=lambda group: group.index)

    def take(self, version: int, show: Callable[[Outcome], None] | None = None) -> list[TrainingRow]:
        """Wait for the next batch for the policy of `version`, and return it; call `show` with each arriving outcome.

        The batch stays in flight until `trained` is called.

        Raises:
          QueueError: no worker is alive, or no outcome arrives.
          PeerError: the same, in another process.
        """
        self._wait(version, show)
        chosen = [group for group in self._groups if self._is_done(group)][: self._batch]
        return [
            TrainingRow(action, job, (outcome := self._found[job.id]), outcome.reward, group.index, group.version)
            for group in chosen
            for action, job in zip(group.actions, group.jobs, strict=True)
        ]

    def trained(self, taken: Sequence[TrainingRow]) -> None:
        """Remove the groups of a batch that was trained on."""
        done = {row.group for row in taken}
        with self._lock:
            self._groups = [group for group in self._groups if group.index not in done]
        for row in taken:
            self._found.pop(row.job.id, None)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the state that a resume needs. An incomplete batch is sampled again; its jobs are in the queue."""
        with self._lock:
            return [group.to_dict() for group in self._groups if group.index not in self._unfinished]

    def _wait(self, version: int, show: Callable[[Outcome], None] | None) -> None:
        started = processes.agree(time.monotonic)
        poll = min(self._patience / 4, POLL_SECONDS) if self._patience else None
        while True:
            groups = self._groups
            waiting = [job for group in groups for job in group.jobs if job.id not in self._found]
            for arrived, now in self._job_client.arrivals(waiting, poll):
                self._found |= arrived
                for outcome in arrived.values():
                    if show is not None:
                        show(outcome)
                if self._is_enough(version, now - started):
                    return
                if self._groups is not groups:  # Groups were added meanwhile, and may complete before these.
                    break

    def _is_done(self, group: Group) -> bool:
        return all(job.id in self._found for job in group.jobs)

    def _is_enough(self, version: int, waited: float) -> bool:
        if all(map(self._is_done, self._groups[: self._batch])):
            return True
        urgent = [group for group in self._groups if version - group.version >= self._max_staleness]
        return (
            0 < self._patience <= waited
            and sum(map(self._is_done, self._groups)) >= self._batch
            and all(map(self._is_done, urgent))
        )
