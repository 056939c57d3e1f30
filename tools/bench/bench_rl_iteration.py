"""Seconds of an RL iteration whose executions sleep, and the update step's tokens a second beside TRL's GRPO trainer.

    python tools/bench/bench_rl_iteration.py [--workers=4] [--states=8] [--samples=4] [--iterations=8] [--seconds=0]
    python tools/bench/bench_rl_iteration.py --update --prompt_tokens=1024 --action_tokens=128 --states=4

The loop, the sampler, the queue (SQLite) and the job client are those of a run; executions sleep, so that the machine
has nothing to do for them. One line of JSON a way:

- `device alone`: sampling and updating, synchronous, executions of no length.
- `asynchronous` (a policy version behind, sampling beside the update), `asynchronous, in turns` (with rl.sample_ahead
  off) and `synchronous`, with executions of `--seconds`; 0: so long that the workers need as long for a batch as the
  device, where overlapping matters most.

`over_bound` is an iteration's seconds over the larger of the device's alone and the workers' (executions of a batch *
seconds / workers), which no schedule can beat. The first iterations, which compile, are not counted.

With --update the whole update of a batch (scores of policy, critic and reference, and one optimizer step) is measured
with one copy of a prompt for the actions of its state, beside rows that each have their own, in turns. With --trl the
update step alone is measured: one optimizer step of PPO (value head, KL in the loss) and one of TRL's
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
UPDATE = flags.DEFINE_boolean("update", False, "Measure the update with shared prompts beside one with separate rows.")
PROMPT = flags.DEFINE_integer("prompt_tokens", 0, "Of a prompt of the measured update; 0: 8 for each script line.")
REPEATS = flags.DEFINE_integer("repeats", 6, "Update steps of each, after those that are not counted.", lower_bound=2)
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


def make_rows(vocab_size: int) -> tuple[Any, list[Any]]:
    """A batch with actions of different lengths, and its samples: those of a state share a prompt."""
    from mlagent_jax.models.packing import Sample
    from mlagent_jax.rl import ppo

    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, vocab_size, PROMPT.value or 8 * LINES.value).tolist() for _ in range(STATES.value)]
    actions = [
        rng.integers(5, vocab_size, rng.integers(ACTION.value // 2, ACTION.value + 1)).tolist()
        for _ in range(STATES.value * SAMPLES.value)
    ]
    groups = [row // SAMPLES.value for row in range(len(actions))]
    log_probs = [[-5.0] * len(action) for action in actions]
    batch = ppo.make_batch(actions, log_probs, rng.random(len(actions)).tolist(), groups, action_tokens=ACTION.value)
    return batch, [Sample(prompts[group], action) for group, action in zip(groups, actions, strict=True)]


def our_update(
    checkpoint: str, batch: Any, samples: list[Any], share: bool
) -> tuple[Callable[..., None], dict[str, int]]:
    """What an iteration computes of a batch, in two parts, and facts: scores of policy, critic and reference, and one
    optimizer step. Without `share` every action has a row with its own prompt."""
    import jax

    from mlagent_jax.checkpoints import hugging_face
    from mlagent_jax.optim.optimizer import init_state
    from mlagent_jax.rl import ppo
    from mlagent_jax.rl.rows import RowPacker
    from mlagent_jax.settings.policy import PromptConfig
    from mlagent_jax.settings.schema import Config
    from mlagent_jax.settings.stages import RLConfig
    from tools.planning import flops

    shape, graph, policy = hugging_face.load(checkpoint, dtype=np.float32)
    config = RLConfig(learning_rate=_LEARNING_RATE, kl_coefficient=_KL, states=STATES.value, samples=SAMPLES.value)
    limits = PromptConfig(max_prompt_tokens=len(samples[0].prompt), max_action_tokens=ACTION.value)
    packer = RowPacker(Config(prompt=limits, rl=config), 0, shape.hidden_size, single=not share)
    model, optimizer = ppo.Model(graph, 1.0, "float32", "none"), ppo.rl_optimizer(config)
    params = {"policy": jax.tree.map(jax.numpy.copy, policy), "critic": ppo.init_critic(shape.hidden_size)}
    packed = packer.pack(samples, range(len(samples)), len(samples))
    placed, passes = jax.device_put((batch, packed))
    held = {"params": params, "state": init_state(optimizer, params)}
    static = {"model": model, "optimizer": optimizer, "config": config}

    def step(scoring: bool = True) -> None:
        if scoring or "targets" not in held:
            proximal = ppo.score(model, held["params"]["policy"], held["params"]["critic"], placed, passes)
            reference = ppo.score(model, policy, None, placed, passes)
            held["targets"] = ppo.make_targets(placed, proximal, reference, config, np.float32(_KL))
        arguments = (held["params"], held["state"], placed, held["targets"], passes, np.float32(_KL))
        held["params"], held["state"], metrics = ppo.ppo_step(*arguments, **static)
        jax.block_until_ready((held["params"], metrics))

    step()
    used = packed.each
    used = jax.tree.map(lambda array: array[: int(packed.count)], used)
    traced = ppo.ppo_step.trace(
        *(held["params"], held["state"], placed, held["targets"], used, np.float32(_KL)), **static
    )
    facts = {
        "positions": int((used.segment_ids > 0).sum()),
        "padded_positions": used.tokens.size,
        "step_gflop": round(flops.count(traced.jaxpr) / 1e9, 2),
    }
    return step, facts


def their_step(checkpoint: str, batch: Any, samples: list[Any], folder: Path) -> Callable[[], None]:
    """An optimizer step of `GRPOTrainer`, whose generation is replaced by the given rows and reference log-probs."""
    import datasets
    import torch
    from trl import GRPOConfig, GRPOTrainer

    count = len(samples)
    prompt = torch.tensor([sample.prompt for sample in samples], dtype=torch.long)
    actions = [[*sample.action, *(0,) * (ACTION.value - len(sample.action))] for sample in samples]
    mask = torch.tensor(np.asarray(batch.mask).astype(np.int64))
    rows = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": torch.tensor(actions, dtype=torch.long),
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

    batch, samples = make_rows(hugging_face.read_config(Path(checkpoint)).vocab_size)
    tokens = sum(len(sample.prompt) + len(sample.action) for sample in samples)
    ours, facts = our_update(checkpoint, batch, samples, True)
    if TRL.value:
        theirs = their_step(checkpoint, batch, samples, folder)
        medians, cpu = in_turns({"ours": lambda: ours(False), "trl": theirs})
        rates = {f"{name}_tokens_a_second": tokens / each for name, each in medians.items()}
        rates |= {f"{name}_cpu_seconds": each for name, each in cpu.items()}
        _print("update step", rates, tokens=tokens, rows=len(samples), over_trl=medians["trl"] / medians["ours"])
        return
    plain, plain_facts = our_update(checkpoint, batch, samples, False)
    medians, cpu = in_turns({"shared": ours, "separate": plain}, warm_up=1)
    for name, known in (("shared", facts), ("separate", plain_facts)):
        _print(f"update, {name} prompts", {"seconds": medians[name], "cpu_seconds": cpu[name]}, tokens=tokens, **known)
    _print("shared over separate", times_faster=medians["separate"] / medians["shared"])


def in_turns(ways: dict[str, Callable[[], None]], warm_up: int = 2) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds and CPU seconds of each way, after calls that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS.value + warm_up):
        for name, step in ways.items():
            started, used = time.perf_counter(), time.process_time()
            step()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    return tuple({name: statistics.median(each) for name, each in of.items()} for of in (seconds, cpu))


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
        (measure_update if TRL.value or UPDATE.value else measure_loop)(checkpoint, folder)


if __name__ == "__main__":
    app.run(main)
