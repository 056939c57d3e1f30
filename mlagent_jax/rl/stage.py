"""The rl stage: step-wise PPO. The steps of one iteration:

    1. Draw states from the pool, and sample actions from each with their log-probs.
    2. Hand the actions out as jobs, one group per state. Workers execute and grade them. Take the next complete batch.
    3. Turn rewards into advantages; mask infrastructure errors.
    4. Take steps of the policy loss with a KL to the reference; the result is the next policy version.
    5. At intervals, evaluate the policy in fixed states, and keep the best checkpoint.

Steps 1 and 2 are in `rl.batches` (or `rl.replay`, which reads batches from files), 3 and 4 in `rl.learner`, 5 in
`rl.validation`. This module has the loop, its records and its checkpoints. The checkpoint of an iteration holds
everything that a resume needs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.rl.batches import Batches
from mlagent_jax.rl.in_flight import TrainingRow
from mlagent_jax.rl.learner import Learner
from mlagent_jax.rl.pretraining import expert_batches
from mlagent_jax.rl.replay import ReplayedBatches, batch_path, write_batch
from mlagent_jax.rl.scalars import group_scalars, operator_scalars, outcome_scalars, task_scalars
from mlagent_jax.rl.validation import Validation
from mlagent_jax.runs.policies import Policy, checkpointer, describe, renderer, trained_policy, training
from mlagent_jax.runs.run import Run
from mlagent_jax.runs.speed import Speed
from mlagent_jax.runtime import jsonl, processes
from mlagent_jax.runtime.interruption import Stopped
from mlagent_jax.runtime.progress import Progress
from mlagent_jax.trajectories.record import Record


def rl(run: Run) -> None:
    """Train the SFT policy, and write the checkpoints to checkpoints/rl."""
    policy = trained_policy(run, "sft")
    describe(run, "rl", policy)
    trainer = _Trainer(run, policy)
    del policy  # the learner owns its arrays, and frees them before it restores a checkpoint
    trainer.train()


class _Trainer:
    """Training loop: take a batch, update on it, record it, save a checkpoint."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self.run, self.config = run, run.config.rl
        self.trajectories = run.workdir / "trajectories" / "rl.jsonl"
        trained = training(run, policy)
        self.batches: Batches | ReplayedBatches
        self.validation: Validation | None = None
        if self.config.replay:
            self.batches = ReplayedBatches(epath.Path(self.config.replay))
        else:
            self.batches = Batches(run, policy, trained.without_params())
            self.validation = Validation(run, self.batches.actor)
        self.learner = Learner(run, policy, trained, self.batches.dispatch_lock)
        self.whole, self.renderer = trained.without_params().whole, renderer(run, policy)
        self.speed = Speed(policy.config, trained.base is not None)
        self.iteration = 0
        self._recorded = 0  # iterations whose records are written; one less than `iteration` after an update
        self._saved = 0  # step of the last checkpoint, which may still be written
        self._resharding = 0, 0.0

    def train(self) -> None:
        """Run the remaining iterations, until the last one or until the validation has converged.

        Raises:
          Stopped: A signal arrived; a checkpoint is saved first.
        """
        total = self.config.iterations
        with checkpointer(self.run, "rl") as saved, self.batches:
            self._resume(saved)
            with (
                jsonl.Appender(self.trajectories) if self.run.is_first else contextlib.nullcontext() as trajectories,
                self.run.progress("rl", total, unit="iteration", done=self.iteration) as progress,
            ):
                while self.iteration < total and not (self.validation and self.validation.has_converged):
                    try:
                        self._iterate(saved, trajectories, progress)
                    except Stopped:  # raised in all processes
                        if self._recorded == self.iteration:
                            self._save(saved)
                        raise

    def _iterate(self, saved: Checkpointer, trajectories: jsonl.Appender | None, progress: Progress) -> None:
        """Run one iteration. A signal waits from the update to the records, except during a validation.

        Raises:
          Stopped: A signal arrived. One during the validation has the iteration repeated after the resume.
        """
        self.run.stop_if_requested()
        self.run.timeline.begin("rl", self.iteration + 1)
        started = time.monotonic()
        taken, seconds_sample = self.batches.take(self.iteration, self.learner.params, lambda _: progress.update(0))
        with contextlib.ExitStack() as hold:
            hold.enter_context(self.run.interruption.held())
            if self.config.save_batches and self.run.is_first:
                write_batch(batch_path(self.run.workdir / "batches", self.iteration), taken)
            values, metric = self._train_on(taken, seconds_sample, time.monotonic() - started), None
            if self.validation is not None and self.validation.is_due(self.iteration):
                hold.close()
                metric = self._validate(self.validation, values)
                hold.enter_context(self.run.interruption.held())
            if trajectories is not None:
                trajectories.append(*self._records(taken))
            self.run.metrics.write("rl", self.iteration, values)
            self._recorded = self.iteration
            due = self.iteration % self.config.checkpoint_every == 0 or self.iteration == self.config.iterations
            stopping = self.run.is_stopping()
            if due or stopping or metric is not None:
                with self.run.timeline.span("checkpoint"):
                    self._save(saved, metric)
            self.run.timeline.end("rl", self.iteration)
            progress.update(1, **{k: values[k] for k in ("reward", "kl", "entropy", "valid")})
            if stopping:
                self.run.interruption.check()

    def _validate(self, validation: Validation, values: dict[str, float]) -> float:
        """Evaluate the policy, and add the scalars to `values`; return the metric."""
        with self.run.timeline.span("validation"):
            measured = validation.measure(self.whole(self.learner.params["policy"]), self.iteration)
        values |= measured
        return validation.history[-1]

    def _train_on(self, taken: Sequence[TrainingRow], seconds_sample: float, seconds_taking: float) -> dict[str, float]:
        """Update the policy on the rows `taken`; return the scalars of the iteration.

        Args:
          taken: Rows of the batch.
          seconds_sample: Seconds that this process spent sampling the batch.
          seconds_taking: Seconds until the batch was complete, sampling included.
        """
        started = time.monotonic()
        with self.run.timeline.span("update"):
            batch = self.learner.batch(taken)
            self.batches.make_room()
            metrics = self.learner.update(batch, taken, self.iteration)
        if not self.config.replay:
            self.run.job_client.consume(self.iteration, [row.job for row in taken])
        self.batches.trained(taken)
        seconds_update = time.monotonic() - started
        seconds_ahead = self.batches.join()
        seconds_joining = time.monotonic() - started - seconds_update
        seconds = seconds_taking + seconds_update + seconds_joining
        resharding = self.batches.resharding
        reshard_bytes, seconds_reshard = (
            now - before for now, before in zip(resharding, self._resharding, strict=True)
        )
        self._resharding = resharding
        outcomes = [row.outcome for row in taken]
        counted = [row for row, counts in zip(taken, batch.mask.any(axis=1), strict=False) if counts]  # less padding
        values = (
            metrics
            | self.speed.rl(_lengths(counted), self.config.epochs, seconds_update)
            | outcome_scalars(outcomes)
            | task_scalars(taken)
            | operator_scalars(taken)
            | group_scalars([*taken, *self.batches.replaced])
            | {
                "staleness": sum(self.iteration - row.version for row in taken) / len(taken),
                "pool": self.batches.states,
                "seconds_sample": seconds_sample + seconds_joining,
                "seconds_sample_ahead": seconds_ahead,
                "seconds_reshard": seconds_reshard,
                "reshard_bytes": reshard_bytes,
                "seconds_wait": seconds_taking - seconds_sample,
                "seconds_execute": sum(outcome.seconds for outcome in outcomes),
                "seconds_update": seconds_update,
                "tokens_per_second": sum(row.action.prompt_tokens + row.action.completion_tokens for row in taken)
                / seconds,
                "executions_per_second": sum("started" in o.progress for o in outcomes) / seconds,
            }
        )
        self.iteration += 1
        return values

    def _records(self, taken: Sequence[TrainingRow]) -> list[dict[str, Any]]:
        """Return the trajectory records of the iteration's rows."""
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

    def _save(self, saved: Checkpointer, metric: float | None = None) -> None:
        """Save a checkpoint of the current iteration, unless it exists already."""
        if self.iteration > self._saved:  # `latest` does not see a step that is being written
            history = {"validations": self.validation.history} if self.validation else {}
            extra = self.learner.to_dict() | self.batches.to_dict() | history
            saved.save(self.iteration, self.learner.arrays(), extra, metric)
            self._saved = self.iteration

    def _resume(self, saved: Checkpointer) -> None:
        """Restore the last checkpoint, if there is one.

        Results of later iterations come back from the queue; metrics and trajectories of later iterations are removed.
        Without a checkpoint, the critic is pretrained if the config asks for it.
        """
        step = processes.agree(saved.latest)
        if not self.config.replay:
            self.run.job_client.rollback(-1 if step is None else step - 1)
        self.run.metrics.rewind("rl", step or 0)
        if self.run.is_first and self.trajectories.exists():
            jsonl.replace(self.trajectories, [d for d in jsonl.read(self.trajectories) if d["step"] <= (step or 0)])
        if step is None:
            if self.config.critic_pretraining:
                explained = self.learner.pretrain(expert_batches(self.run, self.renderer))
                self.run.metrics.rewind("critic", 0)
                self.run.metrics.write("critic", 1, explained)
            return
        extra = self.learner.restore(saved, step)
        self.iteration = self._recorded = self._saved = step
        if self.validation:
            self.validation.history = list(extra.get("validations", ()))
        self.batches.restore(extra, step)


def _lengths(taken: Sequence[TrainingRow]) -> list[tuple[int, list[int]]]:
    """Return (prompt tokens, [tokens of each action]) for each distinct prompt of each group.

    A group of single steps has one prompt; a group of episodes has several.
    """
    prompts: dict[tuple[int, tuple[int, ...]], tuple[int, list[int]]] = {}
    for row in taken:
        prompt = tuple(row.action.prompt)
        prompts.setdefault((row.group, prompt), (len(prompt), []))[1].append(len(row.action.tokens))
    return list(prompts.values())
