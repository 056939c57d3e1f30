"""Batches of rl: states from the pool, the policy's actions in them, and their outcomes.

With `max_staleness` above 0, batches are sampled ahead while others execute, up to that many policy versions; 0 is the
synchronous algorithm. With `sample_ahead`, sampling also continues during the update, from a copy of the previous
version's weights: the batches, and so the run, are the same, and nothing waits for sampling. With `rollout` = episode,
whole episodes replace single actions: the baseline for step-wise RL.

Draws depend only on the seed and the batch's index. An interrupted iteration draws the same actions, and finds their
results in the queue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from environments.protocol import Job, Outcome, State
from environments.queue.base import QueueError
from mlagent_jax.agents.actor import Actor, SampledAction
from mlagent_jax.agents.episodes import Trajectory, play
from mlagent_jax.agents.factory import PolicyAgent
from mlagent_jax.agents.job_client import is_masked
from mlagent_jax.rl.background import BackgroundSampler
from mlagent_jax.rl.in_flight import Group, InFlight, TrainingRow, rows_of
from mlagent_jax.rl.scalars import silent_groups, speaking_groups
from mlagent_jax.rl.state_pool import StatePool
from mlagent_jax.runs.policies import Policy, Training, make_actor
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import processes
from mlagent_jax.trajectories.record import expert_states

log = logging.getLogger(__name__)


class Batches:
    """State pool, actor, and groups in flight; leaving the context ends background sampling.

    Args:
      run: an open run.
      policy: policy of the SFT stage.
      trained: the same policy in training.

    Attributes:
      dispatch_lock: lock held while a program is handed to devices that the background thread uses too.
      actor: sampler of actions; other code may use it while nothing is sampled ahead.
      replaced: rows of silent groups that other groups replaced in this iteration's batch, and of groups that were
        sampled for them and gave no signal either.
    """

    def __init__(self, run: Run, policy: Policy, trained: Training) -> None:
        self._run, self._config, self._trained = run, run.config.rl, trained
        # Several processes must dispatch the same programs in the same order, so they use one thread.
        self._overlaps = self._config.sample_ahead and self._config.max_staleness > 0 and processes.count() == 1
        self._background = BackgroundSampler(run.devices.mesh)
        # Programs over several devices wait for each other, in the order in which each device received them.
        several = self._overlaps and run.devices.mesh.size > 1
        self.dispatch_lock: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if several else contextlib.nullcontext()
        )
        self.actor: Actor = make_actor(run, dataclasses.replace(policy, graph=trained.graph), self.dispatch_lock)
        self._pool = self._make_pool()
        self.replaced: list[TrainingRow] = []
        self._in_flight = InFlight(
            run.job_client, self._config.states, self._config.max_staleness, self._config.straggler_seconds
        )

    def _make_pool(self) -> StatePool:
        """Return a pool of the expert's states; for whole episodes, only of the states in which a task starts."""
        config = self._run.config.pool
        if self._config.rollout == "episode":
            config = dataclasses.replace(config, max_depth=0, refresh_fraction=0.0)
        records = self._run.expert_records()
        states = expert_states((r for r in records if r.split == "train"), config.max_depth)
        self._run.check_snapshots(states)
        fitting = [state for state in states if self.actor.renderer.fits(state)]
        if missing := len(states) - len(fitting):
            log.warning("rl leaves out %d of %d states, whose prompts do not fit", missing, len(states))
        return StatePool(fitting, config, {state.task: self._run.specs[state.task].kind for state in fitting})

    def __enter__(self) -> Self:
        self._background.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._background.__exit__(*error)

    @property
    def states(self) -> int:
        """Return the number of states in the pool."""
        return len(self._pool)

    @property
    def resharding(self) -> tuple[int, float]:
        """Return bytes and seconds of all weights that were laid out for sampling so far."""
        return self.actor.resharding

    # -- one iteration --

    def take(self, version: int, params: Any, show: Callable[[Outcome], None]) -> tuple[list[TrainingRow], float]:
        """Return the next batch for the policy of `version`, and the seconds of this call spent sampling.

        Args:
          params: parameters of policy and critic, all of which the update donates.
          show: function that is called with each outcome.

        Raises:
          QueueError: no action of the batch could be executed.
        """
        take = self._play_episodes if self._config.rollout == "episode" else self._take_steps
        taken, seconds = take(version, params, show)
        if all(is_masked(row.outcome) for row in taken):
            raise QueueError(
                f"iteration {version + 1}: none of its {len(taken)} actions could be executed; one of them: "
                f"{taken[0].outcome.reason}. Repair that, then `python -m environments.queue retry URL --run "
                f"{self._run.name}`, and start again"
            )
        return taken, seconds

    def make_room(self) -> None:
        """Release the sampler's device memory before the update, unless sampling continues during it."""
        if not self._overlaps:
            self.actor.release()

    def trained(self, taken: Sequence[TrainingRow]) -> None:
        """Mark the batch as trained on: it is no longer in flight, and the pool gets its rewards and the states that it
        reached."""
        seen = [*taken, *self.replaced]
        self._in_flight.trained(seen)
        rewards: dict[str, list[float]] = {}
        reached: list[State] = []
        for row in seen:
            if row.reward is None:
                continue
            rewards.setdefault(row.action.state.id, []).append(row.reward)
            state = row.outcome.next_state(row.job)
            if not row.outcome.final and self.actor.renderer.fits(state):
                reached.append(state)
        self._pool.learn(rewards)
        if self._run.config.pool.refresh_fraction and self._config.rollout == "step":
            self._pool.reach(reached)

    def join(self) -> float:
        """Wait for background sampling after the update; return its seconds."""
        seconds = self._background.join()
        self.actor.release()
        return seconds

    # -- single actions --

    def _take_steps(
        self, version: int, params: Any, show: Callable[[Outcome], None]
    ) -> tuple[list[TrainingRow], float]:
        """Return the next batch of single actions. Later batches are sampled and handed out as far as staleness allows,
        concurrently with waiting and the update if they may overlap."""
        out = len(self._in_flight) // self._config.states
        first = version + out  # the index of the next batch to sample
        last = min(first + self._in_flight.room, self._config.iterations)
        due = [(index, self._pool.sample(self._rng(index), self._config.states)) for index in range(first, last)]
        lacking = len(due) if not self._overlaps else max(0, 1 - out)
        now, later = due[:lacking], due[lacking:]
        policy = self._trained.whole(params["policy"])
        # The update donates the trained arrays, so background sampling has a copy.
        with self._run.timeline.span("weights"):
            weights = self.actor.weights(policy, params) if later else policy
        started = time.monotonic()
        for index, states in now:
            with self._run.timeline.span("sampling"):
                self._sample(weights, version, index, states)
        seconds = time.monotonic() - started

        def sample_later(is_stopping: Callable[[], bool]) -> None:
            for index, states in later:
                with self._run.timeline.span("sampling ahead"):
                    self._sample(weights, version, index, states, is_stopping)

        if later:
            self._background.start(sample_later)
        with self._run.timeline.span("waiting"):
            taken = self._in_flight.take(version, show)
        if self._config.silent_groups == "resample":
            taken, more = self._resample(version, policy, taken, show)
            seconds += more
        return taken, seconds

    def _resample(
        self, version: int, policy: Any, taken: list[TrainingRow], show: Callable[[Outcome], None]
    ) -> tuple[list[TrainingRow], float]:
        """Replace silent groups by groups from other states, within the budget of executions.

        DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476, section 3.2), which samples until the batch is full.
        If the budget ends first, silent groups stay. Returns the batch, and the seconds of sampling.
        """
        started, waited = time.monotonic(), 0.0
        samples, budget = self._config.samples, self._config.resample_executions // self._config.samples
        self.replaced = []
        # Indices of replacing groups follow those of all batches.
        index, rounds = self._config.iterations * self._config.states + version * budget, itertools.count()
        while (silent := sorted(silent_groups(taken))) and budget:
            count, round_ = min(len(silent), budget), next(rounds)
            states = self._pool.sample(np.random.default_rng([self._run.config.seed, version, 2, round_]), count)
            actions = self.actor.act(policy, states, samples, f"rl/{version}/again/{round_}")
            groups = [
                self._group(index + place, version, tuple(actions[place * samples : (place + 1) * samples]))
                for place in range(count)
            ]
            index, budget = index + count, budget - count
            before = time.monotonic()
            outcomes = iter(self._run.job_client.gather([job for group in groups for job in group.jobs], show))
            waited += time.monotonic() - before
            fresh = [
                TrainingRow(action, job, (outcome := next(outcomes)), outcome.reward, group.index, group.version)
                for group in groups
                for action, job in zip(group.actions, group.jobs, strict=True)
            ]
            speaking = speaking_groups(fresh)
            out = set(silent[: len(speaking)])
            self.replaced += [row for row in taken if row.group in out]
            self.replaced += [row for row in fresh if row.group not in speaking]
            taken = [row for row in taken if row.group not in out] + [row for row in fresh if row.group in speaking]
        return taken, time.monotonic() - started - waited

    def _sample(
        self,
        weights: Any,
        version: int,
        index: int,
        states: Sequence[State],
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Sample the batch of this index, and hand out each group as soon as it is complete."""
        found = self.actor.act_by_state(weights, states, self._config.samples, f"rl/{index}")
        first = index * self._config.states
        groups = (self._group(first + place, version, tuple(actions)) for place, actions in found)
        if processes.count() > 1:  # They hand out together.
            self._in_flight.add(sorted(groups, key=lambda group: group.index))
            return
        for group in groups:
            if is_stopping():
                return
            self._in_flight.add([group], more=True)
        self._in_flight.add([])  # The batch is complete.

    def _group(self, index: int, version: int, actions: tuple[SampledAction, ...]) -> Group:
        # A state may be drawn twice: the group's index keeps its jobs apart.
        first = index * self._config.samples
        jobs = tuple(self._job(action, version, sample) for sample, action in enumerate(actions, first))
        return Group(version, index, actions, jobs)

    # -- whole episodes --

    def _play_episodes(
        self, version: int, params: Any, show: Callable[[Outcome], None]
    ) -> tuple[list[TrainingRow], float]:
        """Return the next batch of whole episodes: every action is trained on the result of its episode."""
        starts = self._pool.sample(self._rng(version), self._config.states)
        episodes = [
            Trajectory("train", i, state) for i, state in enumerate(starts) for _ in range(self._config.samples)
        ]
        policy, samples, seconds = self._trained.whole(params["policy"]), itertools.count(), 0.0
        agent = PolicyAgent(self.actor, policy, lambda t, depth, place: f"rl/{version}/{depth}/{place}")
        with self._run.timeline.span("episodes"):
            for wave in play(
                episodes,
                agent,
                lambda t, action: self._job(action, version, next(samples)),
                lambda jobs: self._run.job_client.gather(jobs, show),
                self._config.episode_steps,
            ):
                seconds += sum(step.seconds for _, step in wave)
        return rows_of(episodes, self._config.reward, version), seconds

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self._run.config.seed, index])

    def _job(self, action: SampledAction, version: int, sample: int) -> Job:
        return self._run.job(action.state, action, version=version, sample=sample, reward=self._config.reward)

    # -- checkpoints --

    def to_dict(self) -> dict[str, Any]:
        """Return the state that a resume needs, in addition to the parameters."""
        return {"pool": self._pool.to_dict(), "under_way": self._in_flight.to_list()}

    def restore(self, data: dict[str, Any], version: int) -> None:
        """Restore the state of `to_dict`, with the policy of `version`."""
        self._pool.restore(data["pool"])
        encode = self.actor.renderer.encode
        self._in_flight.add(
            [
                self._group(group["index"], group["version"], Group.actions_of(group, encode))
                for group in data["under_way"]
            ]
        )
        # Cancel queued jobs of versions that are too old: nothing waits for them.
        oldest = version - self._config.max_staleness
        processes.agree(lambda: self._run.queue.cancel(self._run.name, older_than_version=oldest))
