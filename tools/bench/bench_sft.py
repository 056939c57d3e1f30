"""Tokens a second of SFT: packed rows, padded rows, and TRL's SFTTrainer beside them, same model and same steps.

    python tools/bench/bench_sft.py --config=configs/quickstart.py --workdir=runs/quickstart \
        --config.policy.compute_dtype=float32

The steps are those that a run has collected, with its vocabulary; the weights are random, of the config's shape. Tokens
that are padding do not count. All take AdamW steps on the loss of action tokens, of about as many samples each; packed
rows are filled to `sft.row_tokens`, `--rows` of them a step. TRL's trainer is run as it pads by default; its packing
needs a flash-attention kernel, which a CPU does not have (`--trl=packed` where there is one). One line of JSON each:
the median of `--steps` steps after those that compile. Needs `pip install trl torch`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from absl import flags
from ml_collections import config_flags

from mlagent_jax.settings.flags import run_program

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, for example configs/quickstart.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run whose collected steps and vocabulary are taken.")
ROWS = flags.DEFINE_integer("rows", 8, "Packed rows a step.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 10, "Steps that are timed.", lower_bound=1)
SIDES = flags.DEFINE_list("sides", ["packed", "padded", "trl"], "What is measured, of packed, padded and trl.")
TRL = flags.DEFINE_enum("trl", "padded", ["padded", "packed"], "How TRL's trainer lays samples out.")
_LEARNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Work:
    """What everybody is given."""

    config: Any
    model: Any
    samples: Sequence[Any]
    tokenizer: Path
    """Folder."""
    pad_id: int
    samples_a_step: int
    """Of padded layouts: as many as the packed rows hold on average."""


def prepare(config: Any, workdir: str) -> Work:
    """The run's steps as token ids.

    Raises:
      ConfigError: it has collected none.
    """
    from mlagent_jax.checkpoints import hub
    from mlagent_jax.models.packing import Sample, blocks, packed
    from mlagent_jax.models.tokenizer import Tokenizer
    from mlagent_jax.sft.filters import imitated
    from mlagent_jax.trajectories.store import TrajectoryStore
    from tools.planning.blueprint import read_model

    folder = hub.fetch(config.policy.checkpoint or Path(workdir) / "tokenizer")
    tokenizer = Tokenizer.load(folder)
    records = imitated(TrajectoryStore.open(Path(workdir) / "trajectories" / "collect"), config.filter)
    samples = []
    for record in records:
        action = [*tokenizer.encode(record.action), tokenizer.eos_id]
        samples.append(Sample(tokenizer.encode(record.prompt)[: config.sft.row_tokens - len(action)], action))
    samples = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    rows = packed(blocks(samples, range(len(samples)), config.sft.row_tokens), config.sft.row_tokens)
    a_step = max(1, round(len(samples) / len(rows) * ROWS.value))
    model = dataclasses.replace(read_model(config), vocab_size=tokenizer.vocab_size)
    return Work(config, model, samples, folder, tokenizer.pad_id, a_step)


def batches(work: Work, packing: bool) -> Iterator[Any]:
    """Rows of one step after the other, without end."""
    from mlagent_jax.models.packing import blocks, bucket, fill, packed

    length = work.config.sft.row_tokens
    size = ROWS.value if packing else work.samples_a_step
    found = blocks(work.samples, range(len(work.samples)), length, share=packing)
    rows = packed(found, length) if packing else [[block] for block in found]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]  # packing orders them by length
    while True:
        for first in range(0, len(rows) - size + 1, size):
            chosen = rows[first : first + size]
            time_ = length if packing else bucket(max(sum(block.tokens for block in row) for row in chosen), length)
            yield fill(work.samples, chosen, time_, work.pad_id)


def in_jax(work: Work, packing: bool) -> list[tuple[float, float, int]]:
    """(seconds, CPU seconds, tokens) of each step of the stage's own step function, programs compiled before."""
    import jax

    from mlagent_jax import models
    from mlagent_jax.optim.optimizer import init_state, make_optimizer, with_learning_rate
    from mlagent_jax.sft.step import sft_step

    policy = work.config.policy
    graph, params = models.create(
        work.model, jax.random.key(0), dtype=np.dtype(policy.param_dtype), attention=policy.attention
    )
    optimizer = make_optimizer("adamw", weight_decay=0.0, max_grad_norm=1.0, keeps=work.config.optimizer)
    state = with_learning_rate(init_state(optimizer, params), _LEARNING_RATE)
    compiled: set[int] = set()
    found: list[tuple[float, float, int]] = []
    for rows in batches(work, packing):
        started, cpu = time.perf_counter(), time.process_time()
        params, state, metrics = sft_step(
            params, state, rows.arrays(), graph=graph, optimizer=optimizer, remat=policy.remat,
            compute_dtype=policy.compute_dtype,
        )  # fmt: skip
        loss = float(metrics["loss"])
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        if not np.isfinite(loss):
            raise RuntimeError(f"the loss is {loss}")
        if (shape := rows.tokens.shape[1]) in compiled:
            found.append((seconds, cpu, int(metrics["tokens"])))
        compiled.add(shape)
        if len(found) == STEPS.value:
            return found
    raise RuntimeError("no batches")


def in_trl(work: Work, packing: bool) -> list[tuple[float, float, int]]:
    """(seconds, CPU seconds, tokens) of each step of TRL's trainer, after two."""
    import datasets
    import torch
    import transformers
    import trl

    described = work.model.to_hf()
    kind = described.pop("model_type")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **described), attn_implementation="sdpa"
    )
    found: list[tuple[float, float, int]] = []
    counted = 0

    class Timer(transformers.TrainerCallback):
        started = cpu = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found.append((time.perf_counter() - self.started, time.process_time() - self.cpu, counted))

    class Counting(trl.SFTTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
            nonlocal counted
            mask = inputs.get("attention_mask")
            counted = int(mask.sum() if mask is not None else inputs["input_ids"].numel())
            return super().compute_loss(model, inputs, *arguments, **options)

    ids = [[*sample.prompt, *sample.action] for sample in work.samples]
    masks = [[0] * len(sample.prompt) + [1] * len(sample.action) for sample in work.samples]
    data = datasets.Dataset.from_dict({"input_ids": ids, "completion_mask": masks})
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.SFTConfig(
            output_dir=folder,
            max_steps=STEPS.value + 2,
            per_device_train_batch_size=ROWS.value if packing else work.samples_a_step,
            max_length=work.config.sft.row_tokens,
            packing=packing,
            completion_only_loss=True,
            learning_rate=_LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            bf16=work.config.policy.compute_dtype == "bfloat16",
            gradient_checkpointing=work.config.policy.remat != "none",
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(work.tokenizer)
        Counting(model, settings, train_dataset=data, processing_class=tokenizer, callbacks=[Timer()]).train()
    return found[2:]


def measure() -> None:
    """Print all measurements.

    Raises:
      ConfigError: a setting is impossible, or nothing was collected.
    """
    import jax

    from mlagent_jax.settings.schema import freeze

    config = freeze(CONFIG.value)
    work = prepare(config, WORKDIR.value)
    facts = {
        "row_tokens": config.sft.row_tokens,
        "compute_dtype": config.policy.compute_dtype,
        "device": jax.devices()[0].device_kind,
        "mean_sample": round(float(np.mean([len(sample) for sample in work.samples])), 1),
    }
    sides = [
        ("packed", ROWS.value, lambda: in_jax(work, True)),
        ("padded", work.samples_a_step, lambda: in_jax(work, False)),
    ]
    packing = TRL.value == "packed"
    rows = ROWS.value if packing else work.samples_a_step
    sides.append((f"trl SFTTrainer, {TRL.value}", rows, lambda: in_trl(work, packing)))
    sides = [side for side in sides if side[0].partition(" ")[0] in SIDES.value]
    first = None
    for what, rows, run in sides:
        steps = run()
        rate = statistics.median(tokens / seconds for seconds, _, tokens in steps)
        first = first or rate
        figures = {
            "tokens_per_second": round(rate, 1),
            "first_is_times": round(first / rate, 3),
            "rows": rows,
            "tokens_per_cpu_second": round(statistics.median(tokens / cpu for _, cpu, tokens in steps), 1),
            "tokens_a_step": round(statistics.mean(tokens for *_, tokens in steps)),
            "seconds_a_step": round(statistics.median(seconds for seconds, *_ in steps), 4),
        }
        print(json.dumps({"what": what, **figures, **facts}), flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    run_program(measure)
