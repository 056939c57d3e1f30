"""Qualify a machine for training: a table of what its devices do with a run's own programs, with a verdict by line.

    python tools/qualify.py
    python tools/qualify.py --model=configs/models/qwen2.5-7b.json --lora_rank=32 --output=h200.json

Everything runs on whatever JAX finds, with random weights of the model's shape, in at most `--minutes`; a part that
would begin later is skipped. docs/qualify.md says what each line means. Exit status 1: a line failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

PARTS = ("devices", "parity", "sft", "rl", "sampling", "iteration")
MODEL = flags.DEFINE_string(
    "model", None, "Folder with a config.json, or such a file. Default: the quickstart's shape on CPUs, else 0.5e9."
)
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Compute dtype. Default: bfloat16, float32 on CPUs.")
LORA = flags.DEFINE_integer("lora_rank", 0, "Rank of adapters on a bfloat16 base. 0: full training.", lower_bound=0)
ROWS = flags.DEFINE_integer("rows", 0, "Rows per step, a multiple of 4. 0: 8 per device.", lower_bound=0)
PROMPT = flags.DEFINE_integer("prompt_tokens", 0, "Tokens of a prompt. 0: 1024, on CPUs 256.", lower_bound=0)
ACTION = flags.DEFINE_integer("action_tokens", 0, "Tokens of an action. 0: 128, on CPUs 64.", lower_bound=0)
MINUTES = flags.DEFINE_float("minutes", 10.0, "Time limit; parts that would begin later are skipped.", lower_bound=0.1)
WANTED = flags.DEFINE_list("parts", list(PARTS), f"Parts to measure: {', '.join(PARTS)}.")
OUTPUT = flags.DEFINE_string("output", None, "File for the lines as JSON.")

HALF_A_BILLION = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
}
"""Shape of Qwen2.5-0.5B."""


def settings(on_cpu: bool, devices: int) -> Any:
    """Return the config whose programs are measured."""
    from mlagent_jax.settings.schema import default_config, freeze

    config = default_config()
    config.policy.compute_dtype = DTYPE.value or ("float32" if on_cpu else "bfloat16")
    if LORA.value:
        config.policy.param_dtype, config.lora.rank = "bfloat16", LORA.value
    config.policy.remat = "none" if on_cpu else "full"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.prompt.max_prompt_tokens = PROMPT.value or (256 if on_cpu else 1024)
    config.prompt.max_action_tokens = ACTION.value or (64 if on_cpu else 128)
    rows = ROWS.value or 8 * devices
    config.sft.batch_size = rows
    config.sft.row_tokens = config.prompt.max_prompt_tokens + config.prompt.max_action_tokens
    config.rl.states, config.rl.samples, config.rl.minibatches = max(1, rows // 4), 4, 1
    config.sampling.slots = max(rows, devices)
    return freeze(config)


def shape(config: Any, on_cpu: bool) -> Any:
    """Return the model's shape.

    Raises:
      ConfigError: It cannot be read.
    """
    from mlagent_jax import models
    from tools.planning.blueprint import read_model

    if MODEL.value or on_cpu:
        return read_model(dataclasses.replace(config, plan=dataclasses.replace(config.plan, model=MODEL.value or "")))
    return models.ModelConfig.from_hf(HALF_A_BILLION)


def iteration() -> Iterator[Any]:
    """Measure two iterations of the smoke run with real executions; the second is told, part by part."""
    from configs import smoke
    from environments.sandbox.base import SandboxError
    from mlagent_jax.reporting.page_data import RunReader
    from mlagent_jax.runtime.interruption import Interruption
    from mlagent_jax.train import run_stages
    from tools.bench.machine import Line

    config = smoke.get_config()
    config.stages = ("collect", "sft", "rl")
    with tempfile.TemporaryDirectory() as workdir:
        try:
            run_stages(config, workdir, Interruption())
        except SandboxError as error:
            yield Line("iteration", None, "s", None, "skipped", str(error).partition("\n")[0])
            return
        last = RunReader(workdir).read()["timelines"][-1]
    yield Line("iteration", last["seconds"], "s", None, "ok", last["bound"])
    for name, kind, intervals in last["lanes"]:
        taken = sum(end - start for start, end in intervals)
        what = f"{len(intervals)} executions by a worker's slot" if kind == "execution" else "of the trainer"
        yield Line(f"iteration: {name}", taken, "s", last["seconds"], "ok", f"{what}, beside the whole")


def measure() -> list[Any]:
    """Measure all parts, and print each line when it is there.

    Raises:
      ConfigError: The model cannot be read, or a part is unknown.
    """
    import jax

    from mlagent_jax.models import precision
    from mlagent_jax.runtime.errors import ConfigError

    if unknown := sorted(set(WANTED.value) - set(PARTS)):
        raise ConfigError(f"--parts names {unknown[0]!r}; choose among {', '.join(PARTS)}")
    began, on_cpu = time.monotonic(), jax.default_backend() == "cpu"
    config = settings(on_cpu, jax.device_count())
    with precision.in_effect(config.policy):
        return _lines(config, shape(config, on_cpu), began)


def _lines(config: Any, model: Any, began: float) -> list[Any]:
    from mlagent_jax.parallelism import make_mesh
    from tools.bench import machine

    mesh, here = make_mesh(config.mesh.shape), machine.look(config.policy.compute_dtype)
    print(
        f"{here.count} x {here.kind}; {model.num_layers} layers of {model.hidden_size}, {config.policy.compute_dtype}, "
        f"{config.sft.batch_size} rows of {config.sft.row_tokens} tokens"
    )
    print(_row("part", "measured", "bound", "verdict", "what it is compared with"))
    programs = machine.Programs(config, model, here, mesh)
    parts: dict[str, Callable[[], Iterator[Any]]] = {
        "devices": lambda: machine.devices(here),
        "parity": lambda: machine.parity(config, model),
        "sft": programs.sft,
        "rl": programs.rl,
        "sampling": programs.sampling,
        "iteration": iteration,
    }
    lines = []
    for name in PARTS:
        if name not in WANTED.value:
            continue
        for line in _guarded(name, parts[name], began + 60 * MINUTES.value, mesh):
            lines.append(line)
            print(_row(line.part, _figure(line.value, line.unit), _figure(line.bound, ""), line.verdict, line.note))
    return lines


def _guarded(name: str, part: Callable[[], Iterator[Any]], deadline: float, mesh: Any) -> Iterator[Any]:
    """Yield the lines of a part; one that cannot be measured is a line too."""
    import jax

    from tools.bench.machine import Line

    if time.monotonic() > deadline:
        yield Line(name, None, "", None, "skipped", f"{MINUTES.value:g} minutes are over")
        return
    try:
        # A run sets its own mesh.
        with jax.set_mesh(mesh) if name not in ("parity", "iteration") else contextlib.nullcontext():
            yield from part()
    except ImportError as error:
        yield Line(name, None, "", None, "skipped", f"needs the package {error.name}")
    except Exception as error:
        logging.getLogger(__name__).debug("%s", name, exc_info=True)
        yield Line(name, None, "", None, "fail", f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.3g} {unit}".strip()


def _row(*cells: str) -> str:
    widths = (26, 20, 10, 8)
    return "  ".join((*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1])).rstrip()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    from mlagent_jax.runtime.errors import ConfigError

    try:
        lines = measure()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps([dataclasses.asdict(line) for line in lines], indent=1) + "\n")
    sys.exit(int(any(line.verdict == "fail" for line in lines)))


if __name__ == "__main__":
    app.run(main)
