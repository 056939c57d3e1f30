"""sft: supervised fine-tuning on the expert's steps; from scratch, it makes the vocabulary first."""

from __future__ import annotations

import time

from environments.protocol import OutcomeKind
from mlagent_jax.agent.prompts import prompt_text
from mlagent_jax.data.expert_steps import ExpertSteps
from mlagent_jax.data.trajectories import Record
from mlagent_jax.errors import ConfigError
from mlagent_jax.learning.optimizer import init_state, make_optimizer, schedule, with_learning_rate
from mlagent_jax.learning.sft import sft_step
from mlagent_jax.models import hugging_face
from mlagent_jax.parallelism import processes
from mlagent_jax.policy import abstract, base_policy, checkpointer, make_vocabulary, renderer, training
from mlagent_jax.run import Run

IMITATED = (OutcomeKind.SCORED, OutcomeKind.NO_EDIT)
"""Steps that end so are worth imitating: whether they helped is for the reward to say."""


def sft(run: Run) -> None:
    """Train on trajectories/collect.jsonl into checkpoints/sft."""
    config = run.config.sft
    records = [r for r in run.expert_records() if _worth_imitating(r)]
    if not records:
        raise ConfigError("no collected step to imitate: none was scored, or none is of a training task")
    if not run.config.policy.checkpoint:
        texts = {prompt_text(run.config.prompt, run.specs[r.state.task], r.state) for r in records}
        make_vocabulary(run, sorted(texts | {r.action for r in records}))
    policy = base_policy(run)
    steps = ExpertSteps(records, renderer(run, policy), config, run.config.seed)
    total = config.epochs * steps.batches

    optimizer = make_optimizer(
        config.optimizer,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        keeps=run.config.optimizer,
    )
    trained = training(run, policy)
    arrays = {"policy": trained.params, "optimizer": init_state(optimizer, trained.params)}
    if run.is_first:
        hugging_face.describe(run.workdir / "checkpoints" / "sft" / "model", policy.config, policy.tokenizer)
    with checkpointer(run, "sft") as saved:
        done = processes.agree(saved.latest) or 0
        if done:
            wanted, arrays = abstract(arrays), None  # freed first: both would not fit
            arrays, _ = saved.restore(done, wanted)
        run.metrics.rewind("sft", done)
        saved_at = time.monotonic()
        with run.progress("sft", total, done=done) as progress:
            for step in range(done, total):
                with run.interruption.held():
                    rate = schedule(config.schedule, config.learning_rate, step / total, config.warmup_fraction)
                    arrays["policy"], arrays["optimizer"], metrics = sft_step(
                        arrays["policy"],
                        with_learning_rate(arrays["optimizer"], rate),
                        run.place(steps.batch(step).arrays()),
                        graph=trained.graph,
                        optimizer=optimizer,
                        remat=run.config.policy.remat,
                        compute_dtype=run.config.policy.compute_dtype,
                        micro_rows=config.micro_batch,
                        base=trained.base,
                    )
                    values = {name: float(value) for name, value in metrics.items()}
                    run.metrics.write("sft", step + 1, values | {"learning_rate": rate})
                    progress.update(1, loss=values["loss"])
                    late = processes.agree(lambda: time.monotonic() - saved_at > config.checkpoint_seconds)  # noqa: B023
                    if step + 1 == total or late or run.is_stopping():
                        saved.save(step + 1, arrays, {})
                        saved_at = time.monotonic()


def _worth_imitating(record: Record) -> bool:
    return record.split == "train" and record.target and record.outcome.kind in IMITATED
