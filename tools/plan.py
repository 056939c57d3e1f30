"""What a config takes of accelerators that are not there: every parameter with its layout, bytes a device by phase.

    python tools/plan.py --config=configs/rl_7b_v5e_16.py
    python tools/plan.py --devices=4xH100 --model=configs/models/llama-3.1-8b.json
    python tools/plan.py --devices=2 --memory_gib=48 --tflops=155 --model=configs/models/qwen3-4b.json
    python tools/plan.py --config=configs/rl_7b_v5e_16.py --compile --output=configs/plans/rl_7b_v5e_16.md

Exit status 1 where a stage of the config cannot fit, with what does not and settings under which it would. Nothing is
allocated. `--compile` compiles the SFT step, the PPO step, prefill and one decode step for the slice's own compiler
(for TPU that needs the package `libtpu`, and no TPU: `pip install --no-deps --target=DIR libtpu`, then
TPU_LIBRARY_PATH=DIR/libtpu/libtpu.so) or, with `--simulate`, for as many simulated CPU devices, whose memory figures
say little; it fails where a program gathers all layers of a parameter at once or makes logits for a whole batch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags
from ml_collections import config_flags

from mlagent_jax.settings.flags import parse_flags

CONFIG = config_flags.DEFINE_config_file("config", "configs/rl.py", "Config file, for example configs/rl_7b_v5e_16.py.")
DEVICES = flags.DEFINE_string("devices", None, "Devices: 4xH100, v5e-16, or a count; default config.plan.slice.")
SLICE = flags.DEFINE_string("slice", None, "The same, by its older name.")
MODEL = flags.DEFINE_string("model", None, "A config.json, its folder, or a hub id; default config.plan.model.")
MEMORY = flags.DEFINE_float("memory_gib", 0.0, "Memory of one device by hand, in GiB; --devices is then a count.")
TFLOPS = flags.DEFINE_float("tflops", 0.0, "Dense bfloat16 rate of one device by hand, in TFLOP/s.")
COMPILE = flags.DEFINE_bool("compile", False, "Compile the programs ahead of time.")
SIMULATE = flags.DEFINE_bool("simulate", False, "Compile for simulated CPU devices, not for the slice's.")
PROGRAMS = flags.DEFINE_list(
    "programs", ["sft_step", "ppo_step", "prefill", "decode_step"], "Which of them to compile."
)
OUTPUT = flags.DEFINE_string("output", None, "Write the plan to this file (Markdown) as well.")


def plan() -> int:
    """Print the plan; returns the exit status."""
    from mlagent_jax.parallelism import slices
    from mlagent_jax.runtime.errors import ConfigError
    from mlagent_jax.settings.schema import freeze
    from tools.planning import report

    try:
        if MODEL.value:
            CONFIG.value.plan.model = CONFIG.value.policy.checkpoint = MODEL.value
        config = freeze(CONFIG.value)
        devices = DEVICES.value or SLICE.value or config.plan.slice
        if MEMORY.value or TFLOPS.value:
            slice_ = slices.by_hand(devices, MEMORY.value, TFLOPS.value)
        else:
            slice_ = slices.find(devices)
        if COMPILE.value and not SIMULATE.value and not slice_.topology:
            raise ConfigError(f"--compile has no compiler for {slice_.name} here: add --simulate, or leave it out")
        if COMPILE.value and SIMULATE.value:
            _simulate(slice_.devices)
        made = report.make(config, slice_, PROGRAMS.value if COMPILE.value else (), simulate=SIMULATE.value)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = report.markdown(made)
    print(text)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(text, encoding="utf-8")
    for fault in made.faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if made.faults else 0


def _simulate(devices: int) -> None:
    """So many devices of this machine's CPU; JAX reads it when it starts."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: settings are flags, --config.FIELD=VALUE")
    # Nothing here runs on an accelerator, and the TPU compiler needs neither a search for one nor a lock on it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    sys.exit(plan())


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
