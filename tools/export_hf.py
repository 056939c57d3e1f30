"""Exports a run's checkpoint as a Hugging Face folder, for transformers, vLLM and the like.

    python tools/export_hf.py --checkpoint=runs/quickstart/checkpoints/rl --output=exported [--step=120]

The folder holds sharded safetensors with their index, the configs and the tokenizer. It appears under its name when it
is whole, and `tools/verify_hf.py` compares what transformers computes from it with what we do.
"""

from __future__ import annotations

import sys

from absl import app, flags, logging
from etils import epath

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A stage's checkpoints, WORKDIR/checkpoints/STAGE; local or gs://.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; local or gs://.", required=True)
STEP = flags.DEFINE_integer("step", None, "Step to export; default the latest.")
DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Of the weights; default as trained.")
MAX_SHARD_MB = flags.DEFINE_integer("max_shard_mb", 5000, "Size of a weight file in MB.", lower_bound=1)


def export(checkpoint: epath.Path, output: str, step: int | None, dtype: str | None, max_shard_size: int) -> int:
    """Writes `output` and returns the step that was exported.

    Raises:
      FileNotFoundError, ValueError: no such checkpoint, or none that says which model it is.
    """
    from mlagent_jax import models
    from mlagent_jax.checkpoints import hugging_face
    from mlagent_jax.checkpoints.orbax import Checkpointer
    from mlagent_jax.models.tokenizer import Tokenizer

    config = hugging_face.read_config(checkpoint / "model")
    tokenizer = Tokenizer.load(checkpoint / "model")
    with Checkpointer(checkpoint, read_only=True) as saved:
        step = saved.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"{checkpoint} holds no checkpoint that is whole")
        shapes = saved.shapes(step)
        if "policy/embedder/embedding" not in shapes:
            raise ValueError(
                f"{checkpoint} holds adapters alone: export with the config that trained them, --config.stages=export"
            )
        _, params = models.abstract(config, dtype=shapes["policy/embedder/embedding"].dtype)
        arrays, _ = saved.restore(step, {"policy": params}, partial=True)
    origin = hugging_face.read_origin(checkpoint / "model")
    hugging_face.save(output, config, arrays["policy"], tokenizer, dtype, max_shard_size, origin)
    return step


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # of the libraries: Orbax tells each of its steps
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: give --checkpoint and --output")
    try:
        step = export(epath.Path(CHECKPOINT.value), OUTPUT.value, STEP.value, DTYPE.value, MAX_SHARD_MB.value * 10**6)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{OUTPUT.value}: step {step} of {CHECKPOINT.value}")


if __name__ == "__main__":
    app.run(main)
