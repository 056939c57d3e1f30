"""rl: step-wise PPO. The way of one action:

    1. draw states from the pool, sample actions from each (behaviour log-probs come along)
    2. hand them out as jobs; workers execute and grade them; gather the outcomes
    3. rewards -> advantages; infrastructure errors are masked
    4. clipped PPO steps with a KL to the SFT policy; the next policy version

With `max_staleness` above 0, batches are sampled ahead while others execute, at most so many policy versions old; 0 is
the synchronous algorithm. Everything that a resume needs is in the checkpoint of its iteration, and what is drawn is a
function of the seed and the iteration: an interrupted iteration draws the same actions and finds their results.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from environments.protocol import Job, Outcome, OutcomeKind, State
from environments.queue.base import QueueError
from mlagent_jax.agent.actor import Actor, SampledAction
from mlagent_jax.agent.collector import is_masked
from mlagent_jax.data import jsonl
from mlagent_jax.data.state_pool import StatePool, expert_states
from mlagent_jax.data.trajectories import Record
from mlagent_jax.errors import DivergedError
from mlagent_jax.interruption import Stopped
from mlagent_jax.learning import controllers, losses, ppo
from mlagent_jax.learning.checkpoints import Checkpointer
from mlagent_jax.learning.optimizer import init_state
from mlagent_jax.models import hugging_face
from mlagent_jax.policy import Policy, abstract, checkpointer, make_actor, trained_policy, training
from mlagent_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Actions sampled by one policy version, on their way through the queue."""

    version: int
    actions: tuple[SampledAction, ...]
    jobs: tuple[Job, ...]
    seconds: float = 0.0
    """Sampling it took; 0 where that was before a restart."""

    def to_dict(self) -> dict[str, Any]:
        return {"version": self.version, "actions": [dataclasses.asdict(action) for action in self.actions]}


def rl(run: Run) -> None:
    """Train checkpoints/rl from the SFT policy."""
    _Trainer(run).train()


class _Trainer:
    """The state of the RL loop: parameters, pool, controller, and the rollouts that are under way."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config.rl
        self.trajectories = run.workdir / "trajectories" / "rl.jsonl"
        self.policy: Policy = trained_policy(run, "sft")
        self.trained = training(run, self.policy)
        self.actor: Actor = make_actor(run, dataclasses.replace(self.policy, graph=self.trained.graph))
        policy = run.config.policy
        self.model = ppo.Model(self.trained.graph, run.config.sampling.temperature, policy.compute_dtype, policy.remat)
        records = run.expert_records()
        states = expert_states((r for r in records if r.split == "train"), run.config.pool.max_depth)
        run.check_snapshots(states)
        self.pool = StatePool([state for state in states if self.actor.renderer.fits(state)], run.config.pool)
        self.reference_model = dataclasses.replace(self.model, graph=self.policy.graph)
        self.optimizer = ppo.rl_optimizer(self.config, run.config.optimizer)
        # A copy: the parameters are donated to the update, the reference (self.policy) must outlive it. Of adapters it
        # is little, and the reference is the base that they are trained on.
        params = {
            "policy": jax.tree.map(jnp.copy, self.trained.params),
            "critic": ppo.init_critic(self.policy.config.hidden_size),
        }
        self.arrays = {"params": params, "optimizer": init_state(self.optimizer, params)}
        self.kl = (
            controllers.AdaptiveKL(self.config.kl_coefficient, self.config.kl_target)
            if self.config.kl_target
            else controllers.FixedKL(self.config.kl_coefficient)
        )
        self.under_way: collections.deque[Rollout] = collections.deque()
        self.iteration = 0

    @property
    def sampled(self) -> int:
        """Rollouts sampled so far: the index of the next. Iteration i trains on rollout i."""
        return self.iteration + len(self.under_way)

    def train(self) -> None:
        total = self.config.iterations
        folder = self.run.workdir / "checkpoints" / "rl" / "model"
        hugging_face.describe(folder, self.policy.config, self.policy.tokenizer)
        with checkpointer(self.run, "rl") as saved:
            self._resume(saved)
            appender = jsonl.Appender(self.trajectories)
            with (
                appender as trajectories,
                self.run.progress("rl", total, unit="iteration", done=self.iteration) as progress,
            ):
                while self.iteration < total:
                    try:
                        self._sample_ahead(total)
                        started = time.monotonic()
                        outcomes = self._gather(lambda _: progress.update(0))
                    except Stopped:  # the arrays are those of the last iteration still
                        self._save(saved)
                        raise
                    with self.run.interruption.held():
                        values, records = self._iterate(outcomes, time.monotonic() - started)
                        trajectories.append(*records)
                        self.run.metrics.write("rl", self.iteration, values)
                        due = self.iteration % self.config.checkpoint_every == 0 or self.iteration == total
                        if due or self.run.interruption.requested:
                            self._save(saved)
                        progress.update(1, **{k: values[k] for k in ("reward", "kl", "entropy", "valid")})

    def _save(self, saved: Checkpointer) -> None:
        """Save the iterations done so far, unless they are."""
        if self.iteration > (saved.latest() or 0):
            saved.save(self.iteration, self._checkpoint(), self._extra())

    # -- one iteration --

    def _sample_ahead(self, total: int) -> None:
        """Sample and hand out until the newest rollout is `max_staleness` ahead of the one to be trained on."""
        while self.sampled < total and len(self.under_way) <= self.config.max_staleness:
            rng = np.random.default_rng([self.run.config.seed, self.sampled])
            states = self.pool.sample(rng, self.config.states)
            started = time.monotonic()
            params = self.trained.whole(self.arrays["params"]["policy"])
            actions = self.actor.act(params, states, self.config.samples, f"rl/{self.sampled}")
            seconds = time.monotonic() - started
            jobs = self._jobs(self.sampled, self.iteration, actions)
            self.run.collector.submit(jobs)
            self.under_way.append(Rollout(self.iteration, tuple(actions), jobs, seconds))

    def _jobs(self, rollout: int, version: int, actions: Sequence[SampledAction]) -> tuple[Job, ...]:
        """Jobs of the rollout with this index: no two of a run are the same job, for a result is consumed once."""
        # Samples are counted over all rollouts of a version (the first ones of a run share theirs when sampling ahead),
        # not in a state's group: a state may be drawn twice.
        first = (rollout - version) * len(actions)
        return tuple(
            self.run.job(
                action.state,
                action.text,
                version=version,
                sample=sample,
                reward=self.config.reward,
                truncated=action.truncated,
            )
            for sample, action in enumerate(actions, first)
        )

    def _gather(self, show: Callable[[Outcome], None]) -> list[Outcome]:
        """Outcomes of the oldest rollout under way, each shown as it comes.

        Raises:
          QueueError: none of its actions could be executed.
        """
        rollout = self.under_way[0]
        outcomes = self.run.collector.gather(rollout.jobs, show)
        if all(map(is_masked, outcomes)):
            raise QueueError(
                f"iteration {self.iteration + 1}: none of its {len(outcomes)} actions could be executed; one of them: "
                f"{outcomes[0].reason}. Repair that, then `python -m environments.queue retry URL --run "
                f"{self.run.name}`, and start again"
            )
        return outcomes

    def _iterate(
        self, outcomes: list[Outcome], seconds_execute: float
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Train on the oldest rollout under way, which ended in `outcomes`; returns scalars and its records."""
        rollout = self.under_way.popleft()
        started = time.monotonic()
        batch = self._batch(rollout, outcomes)
        metrics = self._update(batch, rollout)
        self.run.queue.consume(self.run.name, self.iteration, [job.id for job in rollout.jobs])
        self._learn_states(rollout, outcomes)
        staleness = self.iteration - rollout.version
        self.iteration += 1
        values = (
            metrics
            | _outcome_scalars(outcomes)
            | {
                "staleness": staleness,
                "pool": len(self.pool),
                "seconds_sample": rollout.seconds,
                "seconds_execute": seconds_execute,
                "seconds_update": time.monotonic() - started,
            }
        )
        return values, [self._record(job, outcome) for job, outcome in zip(rollout.jobs, outcomes, strict=True)]

    def _batch(self, rollout: Rollout, outcomes: list[Outcome]) -> ppo.Batch:
        return ppo.make_batch(
            [action.prompt for action in rollout.actions],
            [action.tokens for action in rollout.actions],
            [action.log_probs for action in rollout.actions],
            [outcome.reward for outcome in outcomes],
            [index // self.config.samples for index in range(len(outcomes))],
            pad_id=self.policy.tokenizer.pad_id,
            action_tokens=self.run.config.prompt.max_action_tokens,
        )

    def _update(self, batch: ppo.Batch, rollout: Rollout) -> dict[str, float]:
        """All epochs and mini-batches of one batch.

        Raises:
          DivergedError: NaN, or more than `max_kl` from the reference; the batch is saved first.
        """
        config, params = self.config, self.arrays["params"]
        placed = self.run.place(batch)
        whole = self.trained.whole(params["policy"])
        proximal = ppo.score(self.model, whole, params["critic"], placed, config.micro_batch)
        reference = ppo.score(self.reference_model, self.policy.params, None, placed, config.micro_batch)
        targets = ppo.make_targets(placed, proximal, reference, config)
        self._check_sampler(batch, np.asarray(proximal.log_probs), rollout)
        totals: dict[str, losses.Mean] = {}
        rng = np.random.default_rng([self.run.config.seed, self.iteration, 1])
        for _ in range(config.epochs):
            for rows in np.split(rng.permutation(len(batch.rewards)), config.minibatches):
                self.arrays["params"], self.arrays["optimizer"], metrics = ppo.ppo_step(
                    self.arrays["params"],
                    self.arrays["optimizer"],
                    placed[rows],
                    targets[rows],
                    jnp.float32(self.kl.coefficient),
                    model=self.model,
                    optimizer=self.optimizer,
                    config=config,
                    base=self.trained.base,
                )
                totals = metrics if not totals else {name: totals[name] + metrics[name] for name in totals}
        values = {name: float(mean.value) for name, mean in totals.items()}
        values["explained_variance"] = losses.explained_variance(totals)
        values["kl_coefficient"] = self.kl.coefficient
        self._check_divergence(values, rollout)
        self.kl = self.kl.update(values["kl"])
        return values

    def _check_divergence(self, values: dict[str, float], rollout: Rollout) -> None:
        """Stop on NaN or an exploding KL, with the batch saved for a look."""
        watched = {name: values[name] for name in ("kl", "policy_loss", "value_loss", "grad_norm")}
        if all(map(math.isfinite, watched.values())) and values["kl"] <= self.config.max_kl:
            return
        path = self.run.workdir / "diverged.jsonl"
        figures = ", ".join(f"{name} {value:.3g}" for name, value in watched.items())
        jsonl.replace(path, [rollout.to_dict()])
        raise DivergedError(
            f"iteration {self.iteration}: {figures} (max_kl is {self.config.max_kl}); its batch is in {path}. "
            "Lower config.rl.learning_rate or raise config.rl.kl_coefficient in a new workdir"
        )

    def _check_sampler(self, batch: ppo.Batch, log_probs: np.ndarray, rollout: Rollout) -> None:
        """Sampler and trainer must agree on the same weights: a difference would be a silent off-policy bias."""
        if rollout.version != self.iteration or not batch.mask.any():
            return
        gap = float(np.abs(log_probs - batch.behaviour_log_probs)[batch.mask].mean())
        tolerance = 1e-4 if self.run.config.policy.compute_dtype == "float32" else 0.05
        if not gap <= tolerance:
            raise DivergedError(
                f"sampler and trainer differ by {gap:.3g} nats a token at the same weights (tolerance "
                f"{tolerance:.1g}): this is a bug in one of them; check config.policy.attention and the dtypes"
            )

    def _learn_states(self, rollout: Rollout, outcomes: list[Outcome]) -> None:
        """What the rollout tells of its states, and the states that it reached, for the pool."""
        rewards: dict[str, list[float]] = {}
        reached: list[State] = []
        for action, job, outcome in zip(rollout.actions, rollout.jobs, outcomes, strict=True):
            if outcome.reward is None:
                continue
            rewards.setdefault(action.state.id, []).append(outcome.reward)
            state = outcome.next_state(job)
            if not outcome.final and self.actor.renderer.fits(state):
                reached.append(state)
        self.pool.learn(rewards)
        if self.run.config.pool.refresh_fraction:
            self.pool.reach(reached)

    def _record(self, job: Job, outcome: Outcome) -> dict[str, Any]:
        return Record.of(
            job,
            outcome,
            stage="rl",
            split="train",
            trajectory=job.sample,
            step=self.iteration,
            prompt=self.actor.renderer.text(job.state),
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
            "under_way": [rollout.to_dict() for rollout in self.under_way],
        }

    def _resume(self, saved: Any) -> None:
        """Go on from the last checkpoint; results used by later iterations come back from the queue."""
        step = saved.latest()
        self.run.queue.rollback(self.run.name, -1 if step is None else step - 1)
        self.run.metrics.rewind("rl", step or 0)
        kept = [data for data in jsonl.read(self.trajectories) if data["step"] <= (step or 0)]
        if self.trajectories.exists():
            jsonl.replace(self.trajectories, kept)
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
        for data in extra["under_way"]:
            actions = tuple(
                SampledAction(**{**action, "state": State.from_dict(action["state"])}) for action in data["actions"]
            )
            jobs = self._jobs(self.sampled, data["version"], actions)
            self.under_way.append(Rollout(data["version"], actions, jobs))


def _outcome_scalars(outcomes: list[Outcome]) -> dict[str, float]:
    """Mean reward, and the share of each outcome, over what is not masked."""
    counted = [outcome for outcome in outcomes if not is_masked(outcome)]
    size = max(1, len(counted))
    shares = {f"share_{kind}": sum(o.kind is kind for o in counted) / size for kind in OutcomeKind}
    return shares | {
        "reward": sum(o.reward for o in counted) / size,
        "valid": 1.0 - shares[f"share_{OutcomeKind.INVALID_ACTION}"],
        "masked": len(outcomes) - len(counted),
    }
