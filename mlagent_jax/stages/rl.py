"""rl: step-wise PPO. The way of one action:

    1. draw states from the pool, sample actions from each (behaviour log-probs come along)
    2. hand them out as jobs, a group a state; workers execute and grade them; take back the next batch of groups
    3. rewards -> advantages; infrastructure errors are masked
    4. clipped PPO steps with a KL to the SFT policy; the next policy version

With `max_staleness` above 0, batches are sampled ahead while others execute, at most so many policy versions old; 0
is the synchronous algorithm. With `sample_ahead` that goes on beside the update, from a copy of the weights of the
version before it: the same batches, and so the same run, with nothing standing still for them. With `rollout` =
episode, whole episodes take the place of single actions: the baseline that step-wise RL is compared with. Everything
that a resume needs is in the checkpoint of its iteration, and what is drawn is a function of the seed and the
iteration: an interrupted iteration draws the same actions and finds their results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from environments.protocol import Job, Outcome, OutcomeKind, State
from environments.queue.base import QueueError
from mlagent_jax.agent.actor import Actor, SampledAction
from mlagent_jax.agent.agents import PolicyAgent
from mlagent_jax.agent.beside import Beside
from mlagent_jax.agent.collector import is_masked
from mlagent_jax.agent.player import Trajectory, play
from mlagent_jax.agent.rollouts import Group, Taken, UnderWay, rows_of
from mlagent_jax.config import RLConfig
from mlagent_jax.data import jsonl
from mlagent_jax.data.state_pool import StatePool, expert_states
from mlagent_jax.data.trajectories import Record
from mlagent_jax.errors import DivergedError
from mlagent_jax.interruption import Stopped
from mlagent_jax.learning import controllers, losses, ppo
from mlagent_jax.learning.checkpoints import Checkpointer
from mlagent_jax.learning.optimizer import init_state
from mlagent_jax.models import hugging_face
from mlagent_jax.parallelism import processes
from mlagent_jax.policy import Policy, abstract, checkpointer, make_actor, trained_policy, training
from mlagent_jax.run import Run


def rl(run: Run) -> None:
    """Train checkpoints/rl from the SFT policy."""
    _Trainer(run).train()


class _Trainer:
    """The state of the RL loop: parameters, pool, controller, and the groups that are under way."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config.rl
        self.trajectories = run.workdir / "trajectories" / "rl.jsonl"
        self.policy: Policy = trained_policy(run, "sft")
        self.trained = training(run, self.policy)
        # Several processes have to hand the same programs to the devices in the same order: there it is one thread.
        self.overlaps = self.config.sample_ahead and self.config.max_staleness > 0 and processes.count() == 1
        self.beside = Beside(run.mesh)
        # Programs over several devices wait for each other in the order in which they were handed to each.
        several = self.overlaps and run.mesh.size > 1
        self.turn: contextlib.AbstractContextManager[Any] = threading.Lock() if several else contextlib.nullcontext()
        self.actor: Actor = make_actor(run, dataclasses.replace(self.policy, graph=self.trained.graph), self.turn)
        policy = run.config.policy
        self.model = ppo.Model(
            self.trained.graph, run.config.sampling.temperature, policy.compute_dtype, policy.remat, self.policy.graph
        )
        self.reference_model = dataclasses.replace(self.model, graph=self.policy.graph)
        self.pool = self._make_pool()
        self.optimizer = ppo.rl_optimizer(self.config, run.config.optimizer)
        # A copy: the parameters are donated to the update, the reference (self.policy) must outlive it. Of adapters it
        # is little, and the reference is the base that they are trained on.
        backbone = self.policy.params if self.config.critic == "separate" else None
        critic = ppo.init_critic(self.policy.config.hidden_size, backbone)
        critic |= {name: processes.everywhere(critic[name]) for name in critic.keys() - {"backbone"}}
        params = {"policy": jax.tree.map(jnp.copy, self.trained.params), "critic": critic}
        state = init_state(self.optimizer, params, run.config.optimizer.placement)
        self.arrays = {"params": params, "optimizer": state}
        self.kl = (
            controllers.AdaptiveKL(self.config.kl_coefficient, self.config.kl_target)
            if self.config.kl_target
            else controllers.FixedKL(self.config.kl_coefficient)
        )
        self.under_way = UnderWay(
            run.collector, self.config.states, self.config.max_staleness, self.config.straggler_seconds
        )
        self.iteration = 0
        self.seconds_sample = 0.0
        """Of the batch that is being taken."""

    def _make_pool(self) -> StatePool:
        """The expert's states; for whole episodes those alone in which a task starts."""
        config = self.run.config.pool
        if self.config.rollout == "episode":
            config = dataclasses.replace(config, max_depth=0, refresh_fraction=0.0)
        records = self.run.expert_records()
        states = expert_states((r for r in records if r.split == "train"), config.max_depth)
        self.run.check_snapshots(states)
        return StatePool([state for state in states if self.actor.renderer.fits(state)], config)

    @property
    def sampled(self) -> int:
        """Batches sampled so far: the index of the next."""
        return self.iteration + len(self.under_way) // self.config.states

    def train(self) -> None:
        total = self.config.iterations
        folder = self.run.workdir / "checkpoints" / "rl" / "model"
        if self.run.is_first:
            hugging_face.describe(folder, self.policy.config, self.policy.tokenizer, self.policy.origin)
        with checkpointer(self.run, "rl") as saved, self.beside:
            self._resume(saved)
            with (
                jsonl.Appender(self.trajectories) if self.run.is_first else contextlib.nullcontext() as trajectories,
                self.run.progress("rl", total, unit="iteration", done=self.iteration) as progress,
            ):
                while self.iteration < total:
                    try:
                        self.run.stop_if_told()
                        started = time.monotonic()
                        taken = self._take(lambda _: progress.update(0))
                    except Stopped:  # in all processes; the arrays are those of the last iteration still
                        self._save(saved)
                        raise
                    with self.run.interruption.held():
                        values, records = self._train_on(taken, time.monotonic() - started)
                        if trajectories is not None:
                            trajectories.append(*records)
                        self.run.metrics.write("rl", self.iteration, values)
                        due = self.iteration % self.config.checkpoint_every == 0 or self.iteration == total
                        stopping = self.run.is_stopping()
                        if due or stopping:
                            self._save(saved)
                        progress.update(1, **{k: values[k] for k in ("reward", "kl", "entropy", "valid")})
                        if stopping:
                            self.run.interruption.check()

    def _save(self, saved: Checkpointer) -> None:
        """Save the iterations done so far, unless they are."""
        if self.iteration > (saved.latest() or 0):
            saved.save(self.iteration, self._checkpoint(), self._extra())

    # -- one iteration --

    def _take(self, show: Callable[[Outcome], None]) -> list[Taken]:
        """The next batch, each outcome shown as it comes.

        Raises:
          QueueError: none of its actions could be executed.
        """
        self.seconds_sample = 0.0
        taken = self._play_episodes(show) if self.config.rollout == "episode" else self._take_steps(show)
        if all(is_masked(row.outcome) for row in taken):
            raise QueueError(
                f"iteration {self.iteration + 1}: none of its {len(taken)} actions could be executed; one of them: "
                f"{taken[0].outcome.reason}. Repair that, then `python -m environments.queue retry URL --run "
                f"{self.run.name}`, and start again"
            )
        return taken

    def _train_on(self, taken: list[Taken], seconds_taking: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One iteration's update on `taken`, which took so long to get; returns scalars and the batch's records."""
        started = time.monotonic()
        outcomes = [row.outcome for row in taken]
        batch = self._batch(taken)
        if not self.overlaps:
            self.actor.release()
        metrics = self._update(batch, taken)
        self.run.collector.consume(self.iteration, [row.job for row in taken])
        self.under_way.trained(taken)
        self._learn_states(taken)
        seconds_update = time.monotonic() - started
        seconds_ahead = self.beside.join()
        seconds_joining = time.monotonic() - started - seconds_update
        self.actor.release()
        seconds = seconds_taking + seconds_update + seconds_joining
        values = (
            metrics
            | outcome_scalars(outcomes)
            | task_scalars(taken)
            | {
                "staleness": sum(self.iteration - row.version for row in taken) / len(taken),
                "pool": len(self.pool),
                "seconds_sample": self.seconds_sample + seconds_joining,
                "seconds_sample_ahead": seconds_ahead,
                "seconds_wait": seconds_taking - self.seconds_sample,
                "seconds_execute": sum(outcome.seconds for outcome in outcomes),
                "seconds_update": seconds_update,
                "tokens_per_second": int((batch.prompt_lengths + batch.mask.sum(axis=1)).sum()) / seconds,
                "executions_per_second": sum("started" in o.progress for o in outcomes) / seconds,
            }
        )
        self.iteration += 1
        return values, [self._record(row) for row in taken]

    def _take_steps(self, show: Callable[[Outcome], None]) -> list[Taken]:
        """The next batch of single actions; the ones after it are sampled and handed out as far as staleness allows,
        beside the waiting and the update where they may overlap."""
        first, last = self.sampled, min(self.sampled + self.under_way.room, self.config.iterations)
        due = [(index, self.pool.sample(self._rng(index), self.config.states)) for index in range(first, last)]
        lacking = len(due) if not self.overlaps else max(0, 1 - len(self.under_way) // self.config.states)
        now, later = due[:lacking], due[lacking:]
        params, version = self.trained.whole(self.arrays["params"]["policy"]), self.iteration
        # The update has the trained arrays donated to it: what is sampled beside it has its own.
        weights = self.actor.weights(params, self.arrays["params"]) if later else params
        started = time.monotonic()
        for index, states in now:
            self._sample_batch(weights, version, index, states)
        self.seconds_sample += time.monotonic() - started

        def sample_later(is_stopping: Callable[[], bool]) -> None:
            for index, states in later:
                self._sample_batch(weights, version, index, states, is_stopping)

        if later:
            self.beside.start(sample_later)
        return self.under_way.take(self.iteration, show)

    def _sample_batch(
        self,
        weights: Any,
        version: int,
        index: int,
        states: Sequence[State],
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Sample the batch of this index, and hand out each group as soon as it is there."""
        found = self.actor.act_by_state(weights, states, self.config.samples, f"rl/{index}")
        first = index * self.config.states
        groups = (self._group(first + place, version, tuple(actions)) for place, actions in found)
        if processes.count() > 1:  # which hand out together
            self.under_way.add(sorted(groups, key=lambda group: group.index))
            return
        for group in groups:
            if is_stopping():
                return
            self.under_way.add([group], more=True)
        self.under_way.add([])  # it is whole

    def _play_episodes(self, show: Callable[[Outcome], None]) -> list[Taken]:
        """The next batch of whole episodes: every action of one is trained on what the episode reached."""
        starts = self.pool.sample(self._rng(self.iteration), self.config.states)
        episodes = [Trajectory("train", i, state) for i, state in enumerate(starts) for _ in range(self.config.samples)]
        version, samples = self.iteration, itertools.count()
        params = self.trained.whole(self.arrays["params"]["policy"])
        agent = PolicyAgent(self.actor, params, lambda t, depth, place: f"rl/{version}/{depth}/{place}")
        for wave in play(
            episodes,
            agent,
            lambda t, action: self._job(action, version, next(samples)),
            lambda jobs: self.run.collector.gather(jobs, show),
            self.config.episode_steps,
        ):
            self.seconds_sample += sum(step.seconds for _, step in wave)
        return rows_of(episodes, self.config.reward, version)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.run.config.seed, *purpose])

    def _group(self, index: int, version: int, actions: tuple[SampledAction, ...]) -> Group:
        # A state may be drawn twice: the group's index keeps its jobs apart.
        first = index * self.config.samples
        jobs = tuple(self._job(action, version, sample) for sample, action in enumerate(actions, first))
        return Group(version, index, actions, jobs)

    def _job(self, action: SampledAction, version: int, sample: int) -> Job:
        return self.run.job(action.state, action, version=version, sample=sample, reward=self.config.reward)

    def _batch(self, taken: Sequence[Taken]) -> ppo.Batch:
        """Rows of `taken`, filled up with masked ones where episodes ended early: the shape stays the same."""
        config = self.config
        size = config.states * config.samples * (config.episode_steps if config.rollout == "episode" else 1)
        missing = size - len(taken)
        seconds = [None if row.reward is None else row.outcome.seconds for row in taken]
        return ppo.make_batch(
            [*(row.action.prompt for row in taken), *[(self.policy.tokenizer.pad_id,)] * missing],
            [*(row.action.tokens for row in taken), *[()] * missing],
            [*(row.action.log_probs for row in taken), *[()] * missing],
            [*(row.reward for row in taken), *[None] * missing],
            [*(row.group for row in taken), *[-1] * missing],
            pad_id=self.policy.tokenizer.pad_id,
            action_tokens=self.run.config.prompt.max_action_tokens,
            weights=ppo.duration_weights(seconds + [None] * missing) if config.duration_weighting else None,
        )

    def _update(self, batch: ppo.Batch, taken: Sequence[Taken]) -> dict[str, float]:
        """All epochs and mini-batches of one batch.

        Raises:
          DivergedError: NaN, or more than `max_kl` from the reference; the batch is saved first.
        """
        config, params = (
            self._with_micro_rows(len(batch.rewards) // self.config.minibatches, batch),
            self.arrays["params"],
        )
        whole_batch = self._with_micro_rows(len(batch.rewards), batch).micro_batch
        placed = self.run.place(batch)
        whole = self.trained.whole(params["policy"])
        coefficient = np.float32(self.kl.coefficient)
        with self.turn:
            proximal = ppo.score(self.model, whole, params["critic"], placed, whole_batch)
            reference = ppo.score(self.reference_model, self.policy.params, None, placed, whole_batch)
            targets = ppo.make_targets(placed, proximal, reference, config, coefficient)
        self._check_sampler(batch, processes.fetch(proximal.log_probs), taken)
        totals: dict[str, losses.Mean] = {}
        first: dict[str, losses.Mean] = {}
        rng = self._rng(self.iteration, 1)
        for _ in range(config.epochs):
            for rows in np.split(rng.permutation(len(batch.rewards)), config.minibatches):
                with self.turn:
                    self.arrays["params"], self.arrays["optimizer"], metrics = ppo.ppo_step(
                        self.arrays["params"],
                        self.arrays["optimizer"],
                        *self.run.rows((placed, targets), rows),
                        coefficient if config.kl_in == "loss" else np.float32(0.0),
                        model=self.model,
                        optimizer=self.optimizer,
                        config=config,
                        base=self.trained.base,
                    )
                first = first or metrics
                totals = metrics if not totals else {name: totals[name] + metrics[name] for name in totals}
        values = {name: float(mean.value) for name, mean in totals.items()}
        values["explained_variance"] = losses.explained_variance(totals)
        values["kl_coefficient"] = self.kl.coefficient
        self._check_divergence(values, taken)
        self._check_ratio(float(first["log_ratio_abs"].value))
        self.kl = self.kl.update(values["kl"])
        return values

    def _with_micro_rows(self, rows: int, batch: ppo.Batch) -> RLConfig:
        """The settings with a token budget turned into rows, for passes over `rows` of the batch's rows."""
        micro = ppo.micro_rows(self.config, rows, batch.tokens.shape[1], self.run.row_shards)
        return dataclasses.replace(self.config, micro_batch=micro)

    def _check_divergence(self, values: dict[str, float], taken: Sequence[Taken]) -> None:
        """Stop on NaN or an exploding KL, with the batch saved for a look."""
        watched = {name: values[name] for name in ("kl", "policy_loss", "value_loss", "grad_norm")}
        if all(map(math.isfinite, watched.values())) and values["kl"] <= self.config.max_kl:
            return
        path = self.run.workdir / "diverged.jsonl"
        figures = ", ".join(f"{name} {value:.3g}" for name, value in watched.items())
        if self.run.is_first:
            jsonl.replace(
                path,
                [
                    dataclasses.asdict(row.action) | {"outcome": row.outcome.to_dict(), "version": row.version}
                    for row in taken
                ],
            )
        raise DivergedError(
            f"iteration {self.iteration}: {figures} (max_kl is {self.config.max_kl}); its batch is in {path}. "
            "Lower config.rl.learning_rate or raise config.rl.kl_coefficient in a new workdir"
        )

    def _check_sampler(self, batch: ppo.Batch, log_probs: np.ndarray, taken: Sequence[Taken]) -> None:
        """Sampler and trainer must agree on the same weights: a difference would be a silent off-policy bias."""
        same = np.zeros(len(batch.rewards), bool)
        same[: len(taken)] = [row.version == self.iteration for row in taken]
        compared = batch.mask & same[:, None]
        if not compared.any():
            return
        gap = float(np.abs(log_probs - batch.behaviour_log_probs)[compared].mean())
        if not gap <= self._tolerance:
            raise DivergedError(
                f"sampler and trainer differ by {gap:.3g} nats a token at the same weights (tolerance "
                f"{self._tolerance:.1g}): this is a bug in one of them; check config.policy.attention and the dtypes"
            )

    def _check_ratio(self, gap: float) -> None:
        """The first step of a batch is taken from the policy that its ratios are relative to: they are 1."""
        if not gap <= self._tolerance:
            raise DivergedError(
                f"iteration {self.iteration}: the first step's log-ratios are {gap:.3g} a token and not 0 (tolerance "
                f"{self._tolerance:.1g}): scoring and the update disagree, a bug in one of them; check "
                "config.rl.micro_batch and config.policy.remat"
            )

    @property
    def _tolerance(self) -> float:
        """Nats a token by which two programs may differ on the same weights."""
        return 1e-4 if self.run.config.policy.compute_dtype == "float32" else 0.05

    def _learn_states(self, taken: Sequence[Taken]) -> None:
        """What the batch tells of its states, and the states that it reached, for the pool."""
        rewards: dict[str, list[float]] = {}
        reached: list[State] = []
        for row in taken:
            if row.reward is None:
                continue
            rewards.setdefault(row.action.state.id, []).append(row.reward)
            state = row.outcome.next_state(row.job)
            if not row.outcome.final and self.actor.renderer.fits(state):
                reached.append(state)
        self.pool.learn(rewards)
        if self.run.config.pool.refresh_fraction and self.config.rollout == "step":
            self.pool.reach(reached)

    def _record(self, row: Taken) -> dict[str, Any]:
        return Record.of(
            row.job,
            row.outcome,
            stage="rl",
            split="train",
            trajectory=row.job.sample,
            step=self.iteration,
            prompt=self.actor.renderer.text(row.job.state),
        ).to_dict()

    # -- checkpoints --

    def _checkpoint(self) -> dict[str, Any]:
        return {
            "policy": self.arrays["params"]["policy"],
            "critic": self.arrays["params"]["critic"],
            "optimizer": self.arrays["optimizer"],
        }

    def _extra(self) -> dict[str, Any]:
        return {
            "kl": controllers.to_dict(self.kl),
            "pool": self.pool.to_dict(),
            "under_way": self.under_way.to_list(),
        }

    def _resume(self, saved: Any) -> None:
        """Go on from the last checkpoint; results used by later iterations come back from the queue."""
        step = processes.agree(saved.latest)
        self.run.collector.rollback(-1 if step is None else step - 1)
        self.run.metrics.rewind("rl", step or 0)
        if self.run.is_first and self.trajectories.exists():
            jsonl.replace(self.trajectories, [d for d in jsonl.read(self.trajectories) if d["step"] <= (step or 0)])
        if step is None:
            return
        wanted = abstract(self._checkpoint())
        self.arrays = {}  # freed before the restored ones are made: both would not fit
        arrays, extra = saved.restore(step, wanted)
        self.arrays = {
            "params": {"policy": arrays["policy"], "critic": arrays["critic"]},
            "optimizer": arrays["optimizer"],
        }
        self.iteration = step
        self.kl = controllers.from_dict(extra["kl"])
        self.pool.restore(extra["pool"])
        self.under_way.add(
            [self._group(data["index"], data["version"], Group.actions_of(data)) for data in extra["under_way"]]
        )
        # What is queued still of versions that would be too old by now, nobody waits for.
        oldest = step - self.config.max_staleness
        processes.agree(lambda: self.run.queue.cancel(self.run.name, older_than_version=oldest))


def task_scalars(taken: Sequence[Taken]) -> dict[str, float]:
    """Mean reward by task, over what is not masked."""
    rewards: dict[str, list[float]] = {}
    for row in taken:
        if row.reward is not None:
            rewards.setdefault(row.action.state.task_name, []).append(row.reward)
    return {f"task_{name}": sum(values) / len(values) for name, values in rewards.items()}


def outcome_scalars(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean reward, over all and by outcome, and the share of each outcome, over what is not masked."""
    counted = [outcome for outcome in outcomes if not is_masked(outcome)]
    size = max(1, len(counted))
    shares = {f"share_{kind}": sum(o.kind is kind for o in counted) / size for kind in OutcomeKind}
    rewards: dict[str, list[float]] = {}
    for outcome in counted:
        rewards.setdefault(f"reward_{outcome.kind}", []).append(outcome.reward)
    return (
        shares
        | {name: sum(values) / len(values) for name, values in rewards.items()}
        | {
            "reward": sum(o.reward for o in counted) / size,
            "valid": 1.0 - shares[f"share_{OutcomeKind.INVALID_ACTION}"],
            "masked": len(outcomes) - len(counted),
        }
    )
