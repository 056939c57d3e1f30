"""Seconds of an RL iteration whose executions sleep, and the update step's tokens a second beside TRL's GRPO trainer.

    python tools/bench/bench_rl_iteration.py [--workers=4] [--states=8] [--samples=4] [--iterations=8] [--seconds=0]

The loop, the sampler, the queue (SQLite) and the job client are those of a run; executions sleep, so that the machine
has nothing to do for them. One line of JSON a way:

- `device alone`: sampling and updating, synchronous, executions of no length.
- `asynchronous` (a policy version behind, sampling beside the update), `asynchronous, in turns` (with rl.sample_ahead
  off) and `synchronous`, with executions of `--seconds`; 0: so long that the workers need as long for a batch as the
  device, where overlapping matters most.

`over_bound` is an iteration's seconds over the larger of the device's alone and the workers' (executions of a batch *
seconds / workers), which no schedule can beat. The first iterations, which compile, are not counted.

With --trl the update step alone is measured: one optimizer step of PPO (value head, KL in the loss) and one of TRL's
`GRPOTrainer` (KL in the loss), on the same weights, rows and machine in float32, in turns. Tokens are those of prompts
and actions, without padding; `cpu_seconds` of a step say more where the machine is busy. It needs
`pip install trl==1.16.0 torch==2.13.0`, which nothing else here does.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from absl import app, flags

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder; none: the quickstart's shape, random.")
HIDDEN = flags.DEFINE_integer("hidden", 192, "Width of a model of random weights.")
LAYERS = flags.DEFINE_integer("layers", 4, "Its layers.")
WORKERS = flags.DEFINE_integer("workers", 4, "Executions at once.", lower_bound=1)
STATES = flags.DEFINE_integer("states", 8, "States a batch.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 4, "Actions a state.", lower_bound=2)
ITERATIONS = flags.DEFINE_integer("iterations", 8, "Of each way, three of which are not counted.", lower_bound=5)
SECONDS = flags.DEFINE_float("seconds", 0.0, "Of an execution; 0: as long as the device needs.", lower_bound=0.0)
ACTION = flags.DEFINE_integer("action_tokens", 64, "Tokens of an action, at most.")
LINES = flags.DEFINE_integer("script_lines", 20, "Of the states' scripts, which prompts are made of.")
TRL = flags.DEFINE_boolean("trl", False, "Measure the update step beside TRL's instead of the loop.")
REPEATS = flags.DEFINE_integer("repeats", 6, "Update steps of each, after two that are not counted.", lower_bound=2)
_WARM_UP = 3
_LEARNING_RATE = 1e-5
_KL = 0.01


def config_of(checkpoint: str, staleness: int, ahead: bool) -> Any:
    from mlagent_jax.settings.schema import default_config, freeze

    config = default_config()
    config.stages = ("rl",)
    config.policy.checkpoint = checkpoint
    config.policy.hidden_size, config.policy.num_layers = HIDDEN.value, LAYERS.value
    config.policy.num_heads = max(1, HIDDEN.value // 48)
    config.policy.num_kv_heads = max(1, config.policy.num_heads // 2)
    config.policy.intermediate_size = HIDDEN.value * 8 // 3
    config.tokenizer.vocab_size = 320
    config.prompt.max_prompt_tokens = 1024
    config.prompt.max_action_tokens = ACTION.value
    config.sft.row_tokens = config.prompt.max_prompt_tokens + ACTION.value  # not used, and checked
    config.sampling.slots = STATES.value * SAMPLES.value
    config.rl.iterations, config.rl.states, config.rl.samples = ITERATIONS.value, STATES.value, SAMPLES.value
    config.rl.learning_rate = _LEARNING_RATE
    config.rl.max_staleness, config.rl.sample_ahead = staleness, ahead
    config.rl.checkpoint_every = ITERATIONS.value
    return freeze(config)


def iterate(config: Any, folder: Path, seconds: float) -> dict[str, float]:
    """Means of an iteration of a run: its seconds, and where they went."""
    from mlagent_jax.rl.stage import rl
    from mlagent_jax.studies.sleeping import made_up_states, sleeping_run

    ends: list[float] = []
    found: list[dict[str, float]] = []
    states = made_up_states(4 * STATES.value, LINES.value)
    with sleeping_run(config, folder, states, WORKERS.value, seconds) as run:
        write = run.metrics.write

        def watched(stage: str, step: int, values: dict[str, float]) -> None:
            ends.append(time.monotonic())
            found.append(values)
            write(stage, step, values)

        run.metrics.write = watched
        rl(run)
    walls = np.diff(ends)[_WARM_UP - 1 : -1]  # nothing is sampled beside the last
    rows = found[_WARM_UP:-1]
    names = ("seconds_sample", "seconds_sample_ahead", "seconds_wait", "seconds_update")
    # Means: iterations in which the workers were ahead may alternate with those in which they were not.
    return {"seconds": float(walls.mean())} | {n: statistics.mean(row[n] for row in rows) for n in names}


def measure_loop(checkpoint: str, folder: Path) -> None:
    alone = iterate(config_of(checkpoint, 0, False), folder / "alone", 0.0)
    device = alone["seconds_sample"] + alone["seconds_update"]
    count = STATES.value * SAMPLES.value
    seconds = SECONDS.value or device * WORKERS.value / count
    workers = count * seconds / WORKERS.value
    _print("device alone", alone, device_seconds=device, execution_seconds=seconds, workers_seconds=workers)
    ways = {"asynchronous": (1, True), "asynchronous, in turns": (1, False), "synchronous": (0, False)}
    for number, (name, (staleness, ahead)) in enumerate(ways.items()):
        taken = iterate(config_of(checkpoint, staleness, ahead), folder / str(number), seconds)
        _print(name, taken, over_bound=taken["seconds"] / max(device, workers))


def make_rows(vocab_size: int) -> Any:
    """A batch with prompts and actions of different lengths."""
    from mlagent_jax.rl import ppo

    rng = np.random.default_rng(0)
    count = STATES.value * SAMPLES.value
    prompts = [rng.integers(5, vocab_size, 8 * LINES.value).tolist() for _ in range(count)]
    actions = [rng.integers(5, vocab_size, rng.integers(ACTION.value // 2, ACTION.value + 1)).tolist() for _ in prompts]
    log_probs = [[-5.0] * len(action) for action in actions]
    groups = [row // SAMPLES.value for row in range(count)]
    rewards = rng.random(count).tolist()
    return ppo.make_batch(prompts, actions, log_probs, rewards, groups, pad_id=0, action_tokens=ACTION.value)


def our_step(checkpoint: str, batch: Any) -> Callable[[], None]:
    import jax

    from mlagent_jax.checkpoints import hugging_face
    from mlagent_jax.optim.optimizer import init_state
    from mlagent_jax.rl import ppo
    from mlagent_jax.settings.stages import RLConfig

    shape, graph, policy = hugging_face.load(checkpoint, dtype=np.float32)
    config = RLConfig(learning_rate=_LEARNING_RATE, kl_coefficient=_KL)
    model, optimizer = ppo.Model(graph, 1.0, "float32", "none"), ppo.rl_optimizer(config)
    params = {"policy": policy, "critic": ppo.init_critic(shape.hidden_size)}
    placed = jax.device_put(batch)
    proximal = ppo.score(model, policy, params["critic"], placed)
    targets = ppo.make_targets(placed, proximal, proximal, config, np.float32(_KL))
    held = {"params": params, "state": init_state(optimizer, params)}

    def step() -> None:
        held["params"], held["state"], metrics = ppo.ppo_step(
            held["params"],
            held["state"],
            placed,
            targets,
            np.float32(_KL),
            model=model,
            optimizer=optimizer,
            config=config,
        )
        jax.block_until_ready((held["params"], metrics))

    return step


def their_step(checkpoint: str, batch: Any, folder: Path) -> Callable[[], None]:
    """An optimizer step of `GRPOTrainer`, whose generation is replaced by the given rows and reference log-probs."""
    import datasets
    import torch
    from trl import GRPOConfig, GRPOTrainer

    lengths = np.asarray(batch.prompt_lengths)
    width, count = int(lengths.max()), len(lengths)
    prompt = torch.tensor(np.asarray(batch.tokens)[:, :width], dtype=torch.long)
    mask = torch.tensor(np.asarray(batch.mask).astype(np.int64))
    rows = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": torch.tensor(np.asarray(batch.actions), dtype=torch.long),
        "completion_mask": mask,
        "advantages": torch.tensor(np.asarray(batch.rewards) - float(np.mean(batch.rewards))),
        "ref_per_token_logps": torch.full(mask.shape, -5.0),
        "num_items_in_batch": mask.sum(),
    }

    class Given(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            return dict(rows)

    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=count,
        num_generations=SAMPLES.value,
        max_completion_length=ACTION.value,
        learning_rate=_LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=_KL,
        max_grad_norm=1.0,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = datasets.Dataset.from_list([{"prompt": "x"}] * count)
    trainer = Given(model=checkpoint, reward_funcs=lambda **_: [0.0] * count, args=settings, train_dataset=data)
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1

    def step() -> None:
        trainer.training_step(trainer.model, [{"prompt": "x"}] * count, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), settings.max_grad_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def measure_update(checkpoint: str, folder: Path) -> None:
    from mlagent_jax.checkpoints import hugging_face

    batch = make_rows(hugging_face.read_config(Path(checkpoint)).vocab_size)
    tokens = int((np.asarray(batch.prompt_lengths) + np.asarray(batch.mask).sum(axis=1)).sum())
    ways = {"ours": our_step(checkpoint, batch), "trl": their_step(checkpoint, batch, folder)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS.value + 2):
        for name, step in ways.items():
            started, used = time.perf_counter(), time.process_time()
            step()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rates = {f"{name}_tokens_a_second": tokens / each for name, each in medians.items()}
    rates |= {f"{name}_cpu_seconds": statistics.median(each) for name, each in cpu.items()}
    _print("update step", rates, tokens=tokens, rows=len(batch.rewards), over_trl=medians["trl"] / medians["ours"])


def _print(way: str, *parts: dict[str, float], **more: float) -> None:
    merged: dict[str, Any] = {"way": way}
    for part in (*parts, more):
        merged |= {name: round(value, 4) for name, value in part.items()}
    print(json.dumps(merged), flush=True)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = CHECKPOINT.value
        if checkpoint is None:
            from mlagent_jax.studies.sleeping import made_up_states, make_policy

            checkpoint = str(folder / "model")
            make_policy(config_of(checkpoint, 0, False), Path(checkpoint), made_up_states(64, LINES.value))
        (measure_update if TRL.value else measure_loop)(checkpoint, folder)


if __name__ == "__main__":
    app.run(main)
