"""sft: supervised fine-tuning on the expert's steps; a policy from scratch gets its vocabulary first.

A checkpoint holds parameters, optimizer state, position in the data and the evaluations so far. An interrupted and
resumed run takes the same steps, to the last bit, as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from mlagent_jax.agents.prompts import prompt_text
from mlagent_jax.models.packing import Rows
from mlagent_jax.optim.optimizer import abstract_state, init_state, make_optimizer, schedule, with_learning_rate
from mlagent_jax.runs.policies import (
    Training,
    abstract,
    base_policy,
    checkpointer,
    describe,
    make_vocabulary,
    renderer,
    training,
)
from mlagent_jax.runs.run import Run
from mlagent_jax.runs.speed import Speed
from mlagent_jax.runtime import processes
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sft.examples import ExpertSteps, HeldOutSteps, split_trajectories
from mlagent_jax.sft.filters import imitated
from mlagent_jax.sft.prefetch import Prefetch
from mlagent_jax.sft.step import sft_loss, sft_step


def sft(run: Run) -> None:
    """Train on the collected steps into checkpoints/sft."""
    config = run.config.sft
    records = list(imitated(run.expert_records(), run.config.filter))
    if not records:
        raise ConfigError(
            "no collected step to imitate: none of a training task passes config.filter "
            f"({', '.join(run.config.filter.outcomes)} among its settings)"
        )
    records, held_out = split_trajectories(records, config.held_out_fraction, run.config.seed)
    if not run.config.policy.checkpoint:
        texts = {prompt_text(run.config.prompt, run.specs[r.state.task], r.state) for r in records}
        make_vocabulary(run, sorted(texts | {r.action for r in records}))
    policy = base_policy(run)
    steps = ExpertSteps(records, renderer(run, policy), config, run.config.seed)
    evaluated = HeldOutSteps(held_out, renderer(run, policy), config) if held_out else ()
    total = config.epochs * steps.batches
    every = config.evaluate_every or steps.batches

    optimizer = make_optimizer(
        config.optimizer,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        keeps=run.config.optimizer,
    )
    trained = training(run, policy)
    speed = Speed(policy.config, trained.base is not None)
    describe(run, "sft", policy)
    del policy  # `arrays` alone is to hold what is trained
    placement = run.config.optimizer.placement
    with checkpointer(run, "sft") as saved:
        done, evaluations = processes.agree(saved.latest) or 0, []
        if done:
            state = abstract_state(optimizer, trained.params, placement)
            wanted = {"policy": abstract(trained.params), "optimizer": state}
            trained = trained.without_params()  # freed before the restored ones are made: both would not fit
            arrays, extra = saved.restore(done, wanted)
            _check_position(extra, steps.position(done))
            evaluations = extra.get("evaluations", [])
        else:
            arrays = {"policy": trained.params, "optimizer": init_state(optimizer, trained.params, placement)}
            trained = trained.without_params()
        run.metrics.rewind("sft", done)
        saved_at = time.monotonic()

        def tell(step: int, metrics: dict[str, jax.Array], more: dict[str, float]) -> None:
            """Write the metrics of a step, when it is done."""
            values = {name: float(value) for name, value in jax.device_get(metrics).items()} | more
            values |= speed.sft(values["tokens"], values.pop("pairs"), values["action_tokens"])
            run.metrics.write("sft", step + 1, values)
            progress.update(1, **{name: values[name] for name in ("loss", "held_out_loss") if name in values})

        def make(step: int) -> Any:
            return run.devices.place(steps.batch(step).arrays())

        with run.progress("sft", total, done=done) as progress, Prefetch(make, range(done, total)) as batches:
            untold: list[Any] = []
            for step in range(done, total):
                if _has_converged(evaluations, config.patience):
                    break
                run.timeline.begin("sft", step + 1)
                with run.interruption.held():
                    rate = schedule(config.schedule, config.learning_rate, step / total, config.warmup_fraction)
                    arrays["policy"], arrays["optimizer"], metrics = sft_step(
                        arrays["policy"],
                        with_learning_rate(arrays["optimizer"], rate),
                        next(batches),
                        graph=trained.graph,
                        optimizer=optimizer,
                        remat=run.config.policy.remat,
                        compute_dtype=run.config.policy.compute_dtype,
                        micro_rows=config.micro_batch,
                        base=trained.base,
                        single=trained.graph.attention == "cudnn",
                    )
                    if untold:  # of the step before, while the devices are busy with this one
                        tell(*untold)
                    untold = [step, metrics, {"learning_rate": rate}]
                    if run.timeline.is_tracing:
                        jax.block_until_ready(metrics)
                    run.timeline.end("sft", step + 1)
                    due = evaluated and ((step + 1) % every == 0 or step + 1 == total)
                    if due:
                        evaluations.append(_held_out_loss(run, trained, arrays["policy"], evaluated))
                        untold[-1]["held_out_loss"] = evaluations[-1]
                    late = processes.agree(lambda: time.monotonic() - saved_at > config.checkpoint_seconds)  # noqa: B023
                    judged = due and config.patience > 0
                    stopping = run.is_stopping()
                    saves = step + 1 == total or judged or late or stopping
                    if saves or due:
                        tell(*untold)
                        untold = []
                    if saves:
                        position = steps.position(step + 1) | {"evaluations": evaluations}
                        saved.save(step + 1, arrays, position, -evaluations[-1] if judged else None)
                        saved_at = time.monotonic()
                    if stopping:
                        run.interruption.check()


def _held_out_loss(run: Run, trained: Training, params: Any, batches: Iterable[Rows]) -> float:
    """Return nats per action token over all held-out steps."""
    total, count = 0.0, 0
    for rows in batches:
        loss, tokens = sft_loss(
            trained.whole(params),
            run.devices.place(rows.arrays()),
            graph=trained.graph,
            compute_dtype=run.config.policy.compute_dtype,
            single=trained.graph.attention == "cudnn",
        )
        total, count = total + float(loss), count + int(tokens)
    return total / count


def _has_converged(evaluations: Sequence[float], patience: int) -> bool:
    """Return whether none of the last `patience` evaluations is below the lowest before them; never with 0."""
    return (
        bool(patience)
        and len(evaluations) > patience
        and (min(evaluations[-patience:]) >= min(evaluations[:-patience]))
    )


def _check_position(extra: dict[str, Any], position: dict[str, Any]) -> None:
    """Check that the checkpoint was made on the same data.

    Raises:
      ConfigError: It was not.
    """
    known = {name: value for name, value in extra.items() if name in position}
    if any(position[name] != value for name, value in known.items()):
        raise ConfigError(
            "the collected steps are not those that the checkpoints/sft of this workdir were trained on: restore "
            "them, or choose another --workdir"
        )
