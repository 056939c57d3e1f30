"""Turns a GGUF file of llama.cpp into a Hugging Face folder, which every command here takes as a checkpoint.

    python tools/import_gguf.py FILE.gguf --output=DIR [--dtype=bfloat16]

Llama, Qwen2 and Qwen3; float types and the common quantised ones, dequantised by the package `gguf`
(`pip install '.[gguf]'`). Neither PyTorch nor a network is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

OUTPUT = flags.DEFINE_string("output", None, "Folder to write; local or gs://.", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Dtype of the weights.")


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("give one GGUF file and --output")
    from mlagent_jax.checkpoints.gguf import import_gguf

    try:
        config = import_gguf(argv[1], OUTPUT.value, DTYPE.value)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(
        f"{OUTPUT.value}: {config.model_type}, {config.num_layers} layers of width {config.hidden_size}, {DTYPE.value}"
    )


if __name__ == "__main__":
    app.run(main)
