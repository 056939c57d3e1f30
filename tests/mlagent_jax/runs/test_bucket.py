"""A run whose workdir is in a bucket; checkpoints and vocabularies that are read from there."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.checkpoints.folders import whole_folder
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling import load
from mlagent_jax.settings.hosts import TasksConfig, WorkersConfig
from mlagent_jax.settings.schema import Config
from mlagent_jax.settings.stages import EvaluateConfig

WINE = TasksConfig(train=("wine",))
FLAGS = "--xla_backend_optimization_level=0"
SMALL = (
    "--config.tasks.train=digits",
    "--config.tasks.held_out=",
    "--config.tasks.micro_train=1",
    "--config.tasks.micro_held_out=0",
    "--config.collect.trajectories=2",
    "--config.policy.hidden_size=32",
    "--config.policy.num_layers=1",
    "--config.policy.num_heads=4",
    "--config.policy.intermediate_size=64",
    "--config.policy.compute_dtype=float32",
    "--config.tokenizer.vocab_size=512",
    "--config.prompt.max_action_tokens=24",
    "--config.workers.sandbox=bubblewrap",
    "--config.sft.epochs=2",
    "--config.rl.iterations=3",
    "--config.evaluate.policies=rl",
    "--config.evaluate.states_held_in=2",
    "--config.sampling.slots=8",
)


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_is_read_and_written_as_one_in_a_folder(bucket, speaker, tmp_path):
    for path in speaker.iterdir():
        epath.Path(path).copy(bucket / "speaker" / path.name)
    _, _, here = hugging_face.load(speaker)
    config, _, there = hugging_face.load(f"{bucket}/speaker")
    jax.tree.map(np.testing.assert_array_equal, there, here)
    text = "def f(x):\n    return x\nNext:\n"
    tokenizer = Tokenizer.load(bucket / "speaker")
    assert tokenizer.encode(text) == Tokenizer.load(speaker).encode(text)
    model, _ = load(os.fspath(bucket / "speaker"), stacked=True)
    jax.tree.map(np.testing.assert_array_equal, model.params, here)
    hugging_face.save(os.fspath(bucket / "again"), config, there, tokenizer)
    hugging_face.save(tmp_path / "again", config, here, tokenizer)
    there, here = ({path.name: path.read_bytes() for path in (root / "again").iterdir()} for root in (bucket, tmp_path))
    assert there == here
    epath.Path(bucket / "cut" / "model.safetensors").write_bytes((speaker / "model.safetensors").read_bytes()[:-100])
    (bucket / "cut" / "config.json").write_bytes((speaker / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"gs://bucket/cut/model\.safetensors is truncated: tensor"):
        hugging_face.load(bucket / "cut")


@pytest.mark.slow
def test_an_export_that_was_cut_short_is_written_again_and_no_other_folder(bucket):
    target = bucket / "export"
    (target / "model.safetensors").write_bytes(b"half")
    (target / "config.json.partial").write_text("")
    with whole_folder(target) as folder:
        (folder / "model.safetensors").write_bytes(b"whole")
        (folder / "config.json").write_text("{}")
    assert {path.name for path in target.iterdir()} == {"model.safetensors", "config.json"}
    assert (target / "model.safetensors").read_bytes() == b"whole"
    (bucket / "thesis" / "chapter.txt").write_text("")
    with (
        pytest.raises(FileExistsError, match="thesis is there and is no export"),
        whole_folder(bucket / "thesis"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            Config(tasks=WINE, workers=WorkersConfig(queue="postgresql://x/y")),
            r"config\.tasks\.folder is empty .* name a folder",
        ),
        (
            Config(tasks=dataclasses.replace(WINE, folder="tasks")),
            r"config\.workers\.queue is empty .* name a postgresql",
        ),
        (
            Config(tasks=WINE, stages=("evaluate",), evaluate=EvaluateConfig(policies=("endpoint",))),
            r"config\.stages would ask config\.endpoint, whose answers",
        ),
    ],
)
def test_what_cannot_be_kept_in_a_bucket_is_refused(bucket, config, named):
    with pytest.raises(ConfigError, match=named):
        Run.open(config, f"{bucket}/refused")
    assert not (bucket / "refused" / "config.json").exists()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_stopped_goes_on_to_its_end_and_is_exported(bucket, tmp_path):
    workdir = f"{bucket}/runs/small"

    def start(program, *arguments):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "PYTHONPATH": os.pathsep.join(sys.path)}
        with open(tmp_path / "log", "ab") as log:
            return subprocess.Popen([sys.executable, *program, *arguments], stdout=log, stderr=log, env=environment)

    def finish(process, status=0):
        assert process.wait(900) == status, (tmp_path / "log").read_text()[-4000:]

    command = (
        ("-m", "mlagent_jax.train"),
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        "--config.stages=collect,sft,rl,evaluate,export",
        f"--config.tasks.folder={tmp_path / 'tasks'}",
        f"--config.workers.queue=sqlite:///{tmp_path / 'queue.db'}",
        *SMALL,
    )
    started = start(*command)
    while not any("[rl] 1/3" in line for line in (tmp_path / "log").read_text().splitlines()):
        assert started.poll() is None, (tmp_path / "log").read_text()[-4000:]
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    finish(started, status=75)
    finish(start(*command))

    facts = json.loads(epath.Path(workdir, "run.json").read_text())
    assert facts["done"] == ["collect", "sft", "rl", "evaluate", "export"]
    assert epath.Path(workdir, "report", "index.html").exists()
    steps = [record["step"] for record in jsonl.read(epath.Path(workdir, "trajectories", "rl.jsonl"))]
    assert steps == [step for step in (1, 2, 3) for _ in range(8)]
    exported = tmp_path / "exported"
    finish(start(("tools/export_hf.py",), f"--checkpoint={workdir}/checkpoints/rl", f"--output={exported}"))
    assert (exported / "model.safetensors").read_bytes() == epath.Path(
        workdir, "export", "model.safetensors"
    ).read_bytes()
    assert not Path("gs:").exists()
