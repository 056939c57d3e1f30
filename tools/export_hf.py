"""Exports a run's checkpoint as a Hugging Face folder, for transformers, vLLM and the like.

    python tools/export_hf.py --checkpoint=runs/quickstart/checkpoints/rl --output=exported [--step=120]

The folder holds sharded safetensors with their index, the configs and the tokenizer. It appears under its name when it
is whole, and `tools/verify_hf.py` compares what transformers computes from it with what we do.
"""

from __future__ import annotations

import dataclasses
import sys

from absl import app, flags, logging

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, stage (WORKDIR/checkpoints/STAGE) or step; local or gs://.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; local or gs://.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step to export; default the latest.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Of the weights; default as trained.")
MAX_SHARD_MB = flags.DEFINE_integer("max_shard_mb", 5000, "Size of a weight file in MB.", lower_bound=1)


def export(checkpoint: str, output: str, step: int | None, dtype: str | None, max_shard_size: int) -> int:
    """Writes `output` and returns the step that was exported.

    Raises:
      FileNotFoundError, ValueError: no such checkpoint, or none that says which model it is.
    """
    from mlagent_jax.checkpoints import hugging_face, policies
    from mlagent_jax.reporting.model_card import write_model_card

    saved = policies.locate(checkpoint)
    if saved is None:
        raise FileNotFoundError(f"{checkpoint} is no workdir, stage or step of a run")
    saved = saved if step is None else dataclasses.replace(saved, step=step)
    recipe = policies.Recipe.read(saved.workdir)
    saved = policies.resolved(saved, recipe)
    policy = policies.load_saved(saved, recipe, policies.Placement())
    hugging_face.save(output, policy.config, policy.params, policy.tokenizer, dtype, max_shard_size, policy.origin)
    write_model_card(saved.workdir, output, saved.stage)
    return saved.step


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # of the libraries: Orbax tells each of its steps
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: give --checkpoint and --output")
    try:
        step = export(CHECKPOINT.value, OUTPUT.value, STEP.value, DTYPE.value, MAX_SHARD_MB.value * 10**6)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{OUTPUT.value}: step {step} of {CHECKPOINT.value}")


if __name__ == "__main__":
    app.run(main)
