"""rl: step-wise PPO. The way of one action:

    1. draw states from the pool, sample actions from each (behaviour log-probs come along)
    2. hand them out as jobs, a group a state; workers execute and grade them; take back the next batch of groups
    3. rewards -> advantages; infrastructure errors are masked
    4. clipped PPO steps with a KL to the SFT policy; the next policy version

1 and 2 are `mlagent_jax.rl.batches`, 3 and 4 `mlagent_jax.rl.learner`; the loop around them, its records and its
checkpoints are here. Everything that a resume needs is in the checkpoint of its iteration.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.rl.batches import Batches
from mlagent_jax.rl.in_flight import Taken
from mlagent_jax.rl.learner import Learner, batch_of
from mlagent_jax.rl.scalars import outcome_scalars, task_scalars
from mlagent_jax.runs.policies import Policy, checkpointer, describe, trained_policy, training
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import jsonl, processes
from mlagent_jax.runtime.interruption import Stopped
from mlagent_jax.trajectories.record import Record


def rl(run: Run) -> None:
    """Train checkpoints/rl from the SFT policy."""
    policy = trained_policy(run, "sft")
    trainer = _Trainer(run, policy)
    describe(run, "rl", policy)
    trainer.train()


class _Trainer:
    """The loop: take a batch, learn from it, tell of it, keep a checkpoint."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self.run, self.config = run, run.config.rl
        self.trajectories = run.workdir / "trajectories" / "rl.jsonl"
        trained = training(run, policy)
        self.batches = Batches(run, policy, trained)
        self.learner = Learner(run, policy, trained, self.batches.turn)
        self.pad_id = policy.tokenizer.pad_id
        self.iteration = 0

    def train(self) -> None:
        total = self.config.iterations
        with checkpointer(self.run, "rl") as saved, self.batches:
            self._resume(saved)
            with (
                jsonl.Appender(self.trajectories) if self.run.is_first else contextlib.nullcontext() as trajectories,
                self.run.progress("rl", total, unit="iteration", done=self.iteration) as progress,
            ):
                while self.iteration < total:
                    try:
                        self.run.stop_if_told()
                        started = time.monotonic()
                        taken, seconds_sample = self.batches.take(
                            self.iteration, self.learner.params, lambda _: progress.update(0)
                        )
                    except Stopped:  # in all processes; the arrays are those of the last iteration still
                        self._save(saved)
                        raise
                    with self.run.interruption.held():
                        values = self._train_on(taken, seconds_sample, time.monotonic() - started)
                        if trajectories is not None:
                            trajectories.append(*self._records(taken))
                        self.run.metrics.write("rl", self.iteration, values)
                        due = self.iteration % self.config.checkpoint_every == 0 or self.iteration == total
                        stopping = self.run.is_stopping()
                        if due or stopping:
                            self._save(saved)
                        progress.update(1, **{k: values[k] for k in ("reward", "kl", "entropy", "valid")})
                        if stopping:
                            self.run.interruption.check()

    def _train_on(self, taken: Sequence[Taken], seconds_sample: float, seconds_taking: float) -> dict[str, float]:
        """One iteration's update on `taken`, which took so long to get, sampling included; returns scalars."""
        started = time.monotonic()
        batch = batch_of(self.run.config, self.pad_id, taken)
        self.batches.make_room()
        metrics = self.learner.update(batch, taken, self.iteration)
        self.run.collector.consume(self.iteration, [row.job for row in taken])
        self.batches.trained(taken)
        seconds_update = time.monotonic() - started
        seconds_ahead = self.batches.join()
        seconds_joining = time.monotonic() - started - seconds_update
        seconds = seconds_taking + seconds_update + seconds_joining
        outcomes = [row.outcome for row in taken]
        values = (
            metrics
            | outcome_scalars(outcomes)
            | task_scalars(taken)
            | {
                "staleness": sum(self.iteration - row.version for row in taken) / len(taken),
                "pool": self.batches.states,
                "seconds_sample": seconds_sample + seconds_joining,
                "seconds_sample_ahead": seconds_ahead,
                "seconds_wait": seconds_taking - seconds_sample,
                "seconds_execute": sum(outcome.seconds for outcome in outcomes),
                "seconds_update": seconds_update,
                "tokens_per_second": int((batch.prompt_lengths + batch.mask.sum(axis=1)).sum()) / seconds,
                "executions_per_second": sum("started" in o.progress for o in outcomes) / seconds,
            }
        )
        self.iteration += 1
        return values

    def _records(self, taken: Sequence[Taken]) -> list[dict[str, Any]]:
        """What the iteration that is done trained on."""
        return [
            Record.of(
                row.job,
                row.outcome,
                stage="rl",
                split="train",
                trajectory=row.job.sample,
                step=self.iteration,
                prompt=self.run.prompt(row.job.state),
            ).to_dict()
            for row in taken
        ]

    # -- checkpoints --

    def _save(self, saved: Checkpointer) -> None:
        """Save the iterations done so far, unless they are."""
        if self.iteration > (saved.latest() or 0):
            saved.save(self.iteration, self.learner.arrays(), self.learner.to_dict() | self.batches.to_dict())

    def _resume(self, saved: Checkpointer) -> None:
        """Go on from the last checkpoint; results used by later iterations come back from the queue."""
        step = processes.agree(saved.latest)
        self.run.collector.rollback(-1 if step is None else step - 1)
        self.run.metrics.rewind("rl", step or 0)
        if self.run.is_first and self.trajectories.exists():
            jsonl.replace(self.trajectories, [d for d in jsonl.read(self.trajectories) if d["step"] <= (step or 0)])
        if step is None:
            return
        extra = self.learner.restore(saved, step)
        self.iteration = step
        self.batches.restore(extra, step)
