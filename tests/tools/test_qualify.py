"""A machine is qualified by one command: here a CPU, with a tiny model."""

import json
import os
import subprocess
import sys

import pytest

TINY = {
    "model_type": "qwen2",
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
}


def qualify(folder, *arguments):
    (folder / "config.json").write_text(json.dumps(TINY))
    command = [sys.executable, "tools/qualify.py", f"--model={folder}", f"--output={folder / 'lines.json'}"]
    # The reference is transformers in PyTorch, which tests hide from programs.
    places = [place for place in os.environ["PYTHONPATH"].split(os.pathsep) if not place.endswith("without_torch")]
    sizes = ("--rows=4", "--prompt_tokens=24", "--action_tokens=8")
    return subprocess.run(
        [*command, *sizes, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(places)},
        check=False,
    )


@pytest.mark.slow
def test_every_part_is_measured_with_its_bound_and_a_verdict(tmp_path):
    result = qualify(tmp_path, "--parts=devices,parity,sft,rl,sampling")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = {line["part"]: line for line in json.loads((tmp_path / "lines.json").read_text())}
    bounded = {"sft step", "rl step", "memory, sft step", "memory, rl update", "prefill", "decode"}
    assert lines.keys() == {"matrix product", "memory bandwidth", "parity", "weights to sampler", *bounded}
    assert lines["parity"]["verdict"] == "ok" and lines["parity"]["value"] < 1e-5, lines["parity"]
    for part in bounded:
        assert lines[part]["value"] > 0 and lines[part]["bound"] > 0, part
        assert lines[part]["verdict"] in ("ok", "slow"), part
    for step in ("sft step", "rl step"):
        assert lines[step]["value"] < 1.5, "no step is faster than the measured peak"
    assert all(part in result.stdout for part in lines)


@pytest.mark.slow
def test_an_unknown_part_is_named(tmp_path):
    assert "--parts names 'rll'; choose among devices" in qualify(tmp_path, "--parts=rll").stderr
