"""The command-line tools around Hugging Face checkpoints, as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from mlagent_jax import models
from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.models.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]


def run_tool(name, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / name, *arguments],
        # With torch, which verify_hf.py compares with.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_is_exported_and_verified_from_the_command_line(tmp_path):
    config = models.ModelConfig(*(400, 32, 2, 4, 2, 8, 48), model_type="qwen3", qk_norm=True, dtype="float32")
    rng = np.random.default_rng(0)
    shapes = models.abstract(config)[1]
    params = {step: jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes) for step in (3, 7)}
    tokenizer = train_tokenizer([(ROOT / "tools/verify_hf.py").read_text()], 400, [], tmp_path / "tokenizer")
    checkpoint = tmp_path / "checkpoints" / "rl"
    hugging_face.describe(checkpoint / "model", config, tokenizer)
    with Checkpointer(checkpoint) as checkpointer:
        for step, policy in params.items():
            checkpointer.save(step, {"policy": policy, "critic": jnp.ones(3)}, {})

    done = run_tool("export_hf.py", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}", "--max_shard_mb=1")
    assert done.returncode == 0, done.stderr
    assert "step 7" in done.stdout
    loaded = hugging_face.load(tmp_path / "out")[2]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), loaded, params[7]))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id == tokenizer.eos_id

    done = run_tool("verify_hf.py", str(tmp_path / "out"), "--tokens=64")
    assert done.returncode == 0, done.stderr
    assert "64 tokens in float32" in done.stdout
    assert run_tool("verify_hf.py", str(tmp_path / "out"), "--tolerance=0").returncode == 1


@pytest.mark.slow
def test_a_folder_without_checkpoints_is_an_error_in_one_line(tmp_path):
    done = run_tool("export_hf.py", f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()
