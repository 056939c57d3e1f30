"""Tokens a second of the sampler: continuous batching, the same with a prompt of its own in each slot, the same engine
as a static batch, and `generate` of transformers, on the same weights and machine.

    python tools/bench/bench_sampler.py --checkpoint=DIR [--workdir=RUN] [--prompts=32] [--n=4] [--slots=16]
    python tools/bench/bench_sampler.py --prompt_tokens=1024,2048 --completion_tokens=64,256 --prompts=8

Without a checkpoint the policy is a random one of the quickstart's shape. Lengths come from the trajectories that RUN
has recorded (prompts and actions, in the checkpoint's tokens), or are uniform between two numbers, else from
log-normal distributions: prompts with median 180 and sigma 0.5, completions with median 40 and sigma 0.8. Prompts are
random token ids; every completion is ended at its own length by its limit, so that all three make the same tokens.
transformers cannot end a row early, as its batches are static: a batch goes on to its longest row. Needs PyTorch.

For ours the time is split by what it was lost to: compilation (first runs, timed apart), prefill, host (between two
programs), and padding (slots that decoded nothing, and padding of prompts to buckets). `decode_apart_over_shared` is
how much longer decoding alone takes with a prompt in each slot.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder, or a run's workdir, stage or step.")
PROMPT_TOKENS = flags.DEFINE_list("prompt_tokens", None, "Least and most tokens of a prompt.")
COMPLETION_TOKENS = flags.DEFINE_list("completion_tokens", None, "Least and most tokens of a completion.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run whose recorded trajectories give the lengths.")
PROMPTS = flags.DEFINE_integer("prompts", 32, "Distinct prompts.", lower_bound=1)
N = flags.DEFINE_integer("n", 4, "Samples a prompt.", lower_bound=1)
SLOTS = flags.DEFINE_integer("slots", 16, "Sequences at once, for all three.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of weights and arithmetic; default: as stored.")
REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Runs of each, after one that compiles; the fastest counts.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Of the workload.")
LONGEST = flags.DEFINE_integer("longest", 256, "Completions are cut there.", lower_bound=2)
REFERENCE = flags.DEFINE_boolean("reference", True, "Measure transformers, too.")


@dataclasses.dataclass(frozen=True)
class Workload:
    """What everyone is to make."""

    prompts: list[tuple[int, ...]]
    limits: np.ndarray
    """int [prompts, n]: tokens of each completion."""

    @property
    def tokens(self) -> int:
        """Of all completions."""
        return int(self.limits.sum())


def recorded_lengths(workdir: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of prompts, tokens of actions) of the steps that a run has recorded.

    Raises:
      FileNotFoundError: It has recorded none.
    """
    from mlagent_jax.trajectories.store import TrajectoryStore

    folder = Path(workdir, "trajectories")
    rows = [{"prompt": record.prompt, "action": record.action} for record in TrajectoryStore(folder / "collect")]
    rows += [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    if not rows:
        raise FileNotFoundError(f"{workdir}/trajectories has no recorded steps: leave --workdir out, or name a run")
    rows = rows[:: max(1, len(rows) // 500)]
    prompts = np.array([len(tokenizer.encode(row["prompt"])) for row in rows])
    return prompts, np.array([len(tokenizer.encode(row["action"])) + 1 for row in rows])


def make_workload(lengths: tuple[np.ndarray, np.ndarray] | None, vocab_size: int, longest_prompt: int) -> Workload:
    """Draw prompts and limits."""
    rng = np.random.default_rng(SEED.value)
    shape = (PROMPTS.value, N.value)

    def between(bounds: Sequence[str], shape: Any) -> np.ndarray:
        return rng.integers(int(bounds[0]), int(bounds[1]) + 1, shape)

    if lengths is None:
        reads, makes = rng.lognormal(np.log(180), 0.5, shape[0]), rng.lognormal(np.log(40), 0.8, shape)
    else:
        reads, makes = rng.choice(lengths[0], shape[0]), rng.choice(lengths[1], shape)
    if PROMPT_TOKENS.value:
        reads = between(PROMPT_TOKENS.value, shape[0])
    if COMPLETION_TOKENS.value:
        makes = between(COMPLETION_TOKENS.value, shape)
    reads = np.clip(reads, 1, longest_prompt).astype(int)
    prompts = [tuple(rng.integers(0, vocab_size, size).tolist()) for size in reads]
    return Workload(prompts, np.clip(makes, 1, LONGEST.value).astype(int))


class Measured:
    """Runs the sampler's programs and adds up their seconds by name; takes the place of `FirstRuns`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, key: tuple[object, ...], program: Any, *args: Any) -> Any:
        """`program(*args)`, waited for."""
        import jax

        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        name = str(key[0])
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        return result


def ours(model: Any, workload: Workload, run: Any, *, static: bool = False, apart: bool = False) -> float:
    """Seconds of the workload; a static batch takes no new request before all have ended, and `apart` each slot has its
    own copy of its prompt."""
    from mlagent_jax.sampling import Batch, Request, SamplerConfig

    samples = 1 if apart else min(N.value, SLOTS.value)
    config = SamplerConfig(max_new_tokens=LONGEST.value, slots=SLOTS.value, samples=samples)
    requests = [
        Request(place * N.value + sample, prompt, int(limit), SEED.value, sample)
        for place, prompt in enumerate(workload.prompts)
        for sample, limit in enumerate(workload.limits[place])
    ]
    groups = [requests]
    if static:
        groups = [requests[start : start + SLOTS.value] for start in range(0, len(requests), SLOTS.value)]
    begin = time.perf_counter()
    batch = Batch(model.graph, config, model.params, max(map(len, workload.prompts)), run=run)
    made = 0
    for group in groups:
        batch.submit(group)
        while batch.busy:
            made += sum(len(progress.token_ids) for progress in batch.step())
    seconds = time.perf_counter() - begin
    if made != workload.tokens:
        raise AssertionError(f"{made} tokens were made, {workload.tokens} asked for")
    return seconds


def theirs(reference: Any, workload: Workload) -> float:
    """Seconds of transformers' `generate`, left-padded, in batches of as many rows as we have slots."""
    import torch

    rows = [(prompt, int(limit)) for place, prompt in enumerate(workload.prompts) for limit in workload.limits[place]]
    begin = time.perf_counter()
    for start in range(0, len(rows), SLOTS.value):
        group = rows[start : start + SLOTS.value]
        width = max(len(prompt) for prompt, _ in group)
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt, _ in group])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in group])
        longest = max(limit for _, limit in group)
        with torch.no_grad():
            reference.generate(
                ids.to(reference.device),
                attention_mask=mask.to(reference.device),
                do_sample=True,
                top_k=0,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )
    return time.perf_counter() - begin


def losses(model: Any, workload: Workload, whole: float) -> dict[str, float]:
    """Where the seconds of a continuous run went, by one more run whose programs are waited for one by one."""
    from mlagent_jax.sampling import SamplerConfig

    run, config = Measured(), SamplerConfig(max_new_tokens=LONGEST.value)
    seconds = ours(model, workload, run)
    inside = sum(run.seconds.values())
    read = sum(map(len, workload.prompts))
    whole_parts = [(len(prompt) - 1) // config.buckets[-1] * config.buckets[-1] for prompt in workload.prompts]
    padded = sum(
        done + config.bucket(len(prompt) - done) for done, prompt in zip(whole_parts, workload.prompts, strict=True)
    )
    alone = Measured()
    ours(model, workload, alone, apart=True)
    return {
        "decode_apart_over_shared": alone.seconds["decode"] / run.seconds["decode"],
        "prefill_share": (run.seconds.get("prefill", 0.0) + run.seconds.get("prefill-part", 0.0)) / seconds,
        "start_share": run.seconds.get("start", 0.0) / seconds,
        "decode_share": run.seconds.get("decode", 0.0) / seconds,
        "host_share": 1 - inside / seconds,
        "waiting_for_each_program_costs": seconds / whole - 1,
        "prompt_padding_share": 1 - read / padded,
    }


def idle_share(limits: Sequence[int], slots: int) -> tuple[float, float]:
    """Share of slot steps that decode nothing, (continuous, static), by the lengths alone."""
    ends = [0] * slots
    for limit in limits:
        ends[int(np.argmin(ends))] += limit
    groups = [limits[start : start + slots] for start in range(0, len(limits), slots)]
    static = sum(max(group) for group in groups)
    total = sum(limits)
    return 1 - total / (max(ends) * slots), 1 - total / (static * slots)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    import jax

    from mlagent_jax.sampling.batch import FirstRuns
    from mlagent_jax.sampling.checkpoint import load

    try:
        if CHECKPOINT.value:
            model, tokenizer = load(CHECKPOINT.value, dtype=DTYPE.value, stacked=True)
            vocab_size = tokenizer.vocab_size
            lengths = recorded_lengths(WORKDIR.value, tokenizer) if WORKDIR.value else None
        else:
            model, lengths = random_model(), None
            vocab_size = model.graph.config.vocab_size
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    config = model.graph.config
    workload = make_workload(lengths, vocab_size, config.max_position_embeddings - LONGEST.value)
    first = FirstRuns()
    settings: dict[str, dict[str, bool]] = {"continuous": {}, "apart": {"apart": True}, "static": {"static": True}}
    for setting in settings.values():
        ours(model, workload, first, **setting)  # compiles
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "dtype": jax.tree.leaves(model.params)[0].dtype.name,
        "tokens": workload.tokens,
        "prompt_tokens": sum(map(len, workload.prompts)) * N.value,
        "lengths": "recorded" if WORKDIR.value else "given" if PROMPT_TOKENS.value else "log-normal",
        "compile_seconds": first.seconds,
    }
    ways: dict[str, Callable[[], float]] = {
        name: functools.partial(ours, model, workload, first, **setting) for name, setting in settings.items()
    }
    if REFERENCE.value:
        reference = _reference(model)
        ways["transformers"] = lambda: theirs(reference, workload)
    # In turns, so that what else the machine does falls on all alike.
    taken = [{name: way() for name, way in ways.items()} for _ in range(REPEATS.value)]
    best = {name: min(each[name] for each in taken) for name in ways}
    result |= {name: workload.tokens / seconds for name, seconds in best.items()}
    result |= {f"over_{name}": best[name] / best["continuous"] for name in ways if name != "continuous"}
    continuous, static = idle_share(workload.limits.ravel().tolist(), SLOTS.value)
    result |= {"idle_slots_continuous": continuous, "idle_slots_static": static}
    result |= losses(model, workload, best["continuous"])
    for name, value in result.items():
        print(f"{name:32}{value:14.3f}" if isinstance(value, float) else f"{name:32}{value!s:>14}")


def random_model() -> Any:
    """Of the quickstart's shape, with room for long prompts."""
    import jax

    from mlagent_jax import models
    from mlagent_jax.sampling.checkpoint import Model

    config = models.ModelConfig(2048, 192, 4, 4, 2, 48, 512, max_position_embeddings=4096)
    return Model(*models.create(config, jax.random.key(0), dtype=DTYPE.value or "float32"))


def _reference(model: Any) -> Any:
    """The same weights in transformers, on its own device."""
    import tempfile

    import torch
    import transformers

    from mlagent_jax.checkpoints import hugging_face

    with tempfile.TemporaryDirectory() as folder:
        hugging_face.save(Path(folder) / "export", model.graph.config, model.params)
        made = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "export", dtype="auto").eval()
    made.generation_config.eos_token_id = None
    return made.to("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    app.run(main)
