"""The whole pipeline on real executions: interrupted in every stage, resumed, reported, exported."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import needs
import numpy as np
import pytest

from mlagent_jax.runtime import jsonl
from mlagent_jax.trajectories.store import TrajectoryStore

pytestmark = pytest.mark.slow

SMALL = (
    "--config.policy.hidden_size=48",
    "--config.policy.num_layers=2",
    "--config.policy.intermediate_size=96",
    "--config.policy.compute_dtype=float32",
    "--config.prompt.max_action_tokens=40",
    "--config.rl.minibatches=1",  # whose rows eight devices divide
    "--config.workers.sandbox=bubblewrap",
)


def start(config, workdir, *overrides, devices=1):
    log = open(f"{workdir}.log", "ab")  # noqa: SIM115 - the child's
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlagent_jax.train",
            f"--config=configs/{config}.py",
            f"--workdir={workdir}",
            *overrides,
        ],
        stdout=log,
        stderr=log,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        },
        start_new_session=True,
    )


def finish(process, workdir, timeout=900):
    assert process.wait(timeout) == 0, Path(f"{workdir}.log").read_text()[-4000:]


def kill_when(process, workdir, condition, timeout=900, signum=signal.SIGKILL):
    """Kill as soon as the condition holds; the worker must notice that its trainer is gone by itself."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, Path(f"{workdir}.log").read_text()[-4000:]
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)
    process.send_signal(signum)
    return process.wait(timeout)


def jobs(workdir, where="1"):
    with contextlib.closing(sqlite3.connect(workdir / "queue.db")) as db:
        return db.execute(f"select count(*) from mlagent_jobs where {where}").fetchone()[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A smoke run, killed in collect, stopped in sft on 8 devices, killed in rl on 4, ended on one."""
    workdir = tmp_path_factory.mktemp("runs") / "smoke"

    def some_results():
        with contextlib.suppress(sqlite3.Error):
            return (workdir / "queue.db").exists() and jobs(workdir, "state = 'done'") >= 3
        return False

    def records(name):
        # The files are there from the start of the program and of the stage: a record says that it is under way.
        return jsonl.read(workdir / name)

    def slice_of(devices):
        return start("smoke", workdir, *SMALL, "--config.mesh.data=1", "--config.mesh.fsdp=-1", devices=devices)

    kill_when(start("smoke", workdir, *SMALL), workdir, some_results)
    done_before = jobs(workdir, "state = 'done'")
    assert done_before >= 3
    status = kill_when(slice_of(8), workdir, lambda: records("metrics.jsonl"), signum=signal.SIGTERM)
    assert status == 75, Path(f"{workdir}.log").read_text()[-4000:]
    # The step that SIGTERM met is whole and saved, and no step is lost.
    steps = len(records("metrics.jsonl"))
    assert (workdir / "checkpoints" / "sft" / str(steps)).is_dir()
    kill_when(slice_of(4), workdir, lambda: records("trajectories/rl.jsonl"))
    assert f"[sft] {steps}/" in Path(f"{workdir}.log").read_text().rpartition("stage sft\n")[2]
    finish(start("smoke", workdir, *SMALL), workdir)
    return workdir


def test_nothing_that_was_executed_is_executed_again(run):
    assert jobs(run, "state != 'done'") == 0
    # Started again it is the same run, whose jobs are known.
    with contextlib.closing(sqlite3.connect(run / "queue.db")) as db:
        assert len(db.execute("select distinct run from mlagent_jobs").fetchall()) == 1
    records = list(TrajectoryStore.open(run / "trajectories" / "collect"))
    assert len({(r.split, r.task, r.trajectory, r.step) for r in records}) == len(records)
    # A job that was leased when its worker died is tried again; one that was done never.
    assert jobs(run, "attempts > 2") == 0
    records = jsonl.read(run / "trajectories" / "rl.jsonl")
    assert len(records) == 2 * 4 * 2
    assert [record["step"] for record in records] == [1] * 8 + [2] * 8
    for stage in ("sft", "rl"):
        steps = [r["step"] for r in jsonl.read(run / "metrics.jsonl") if r["stage"] == stage]
        assert steps == list(range(1, len(steps) + 1))
    assert steps == [1, 2]


def test_the_summary_holds_every_figure(run):
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert set(summary["policies"]) == {"base", "sft", "rl"}
    for policy in summary["policies"].values():
        assert 0.0 <= policy["valid_action_rate"] <= 1.0
        for split in ("held_in", "held_out"):
            assert {"mean", "ci95", "n"} <= set(policy["step_reward"][split])
            assert {"avg", "best", "ci95", "n"} <= set(policy["relative_gain"][split])
    facts = summary["run"]
    assert {"collect", "sft", "evaluate", "rl", "evaluate.2", "export"} <= set(facts["seconds"])
    assert facts["executions"] > 0
    assert facts["peak_memory_gb"] > 0
    assert facts["sandbox"] in ("bubblewrap", "docker")
    assert facts["versions"]["jax"]
    assert "<html" in (run / "report" / "index.html").read_text()[:200].lower()


def test_no_observation_tells_the_metric_on_hidden_labels(run):
    for record in TrajectoryStore.open(run / "trajectories" / "collect"):
        metric = record.outcome.metric_after
        if metric is not None and metric != round(metric, 3):
            assert repr(metric) not in record.outcome.observation


def test_no_hidden_label_is_in_the_database_the_store_or_the_trajectories(run):
    """Hidden numbers that are long enough to be told from chance, as text and as bytes."""
    with contextlib.closing(sqlite3.connect(run / "queue.db")) as db:
        written = ["\n".join(db.iterdump())]
    assert "mlagent_jobs" in written[0]
    for folder in ("store", "trajectories", "evaluation"):
        written += [path.read_bytes().decode("latin-1") for path in (run / folder).rglob("*") if path.is_file()]
    # Parquet is compressed: what it holds is looked through as text.
    written += [json.dumps(record.to_dict()) for record in TrajectoryStore.open(run / "trajectories" / "collect")]
    everything = "\n".join(written)
    tasks_with_such = 0
    for answers in sorted((run / "tasks").glob("*/private/answers.npz")):
        with np.load(answers) as arrays:
            truth = arrays["truth"].ravel()
        if truth.dtype.kind != "f":
            continue
        labels = [label for label in truth.tolist() if len(repr(label)) >= 12][:50]
        tasks_with_such += bool(labels)
        for label in labels:
            # Eight digits: a table that was rounded when written is found as well.
            assert repr(label)[:9] not in everything, answers
            assert np.float64(label).tobytes().decode("latin-1") not in everything, answers
    assert tasks_with_such


def test_the_export_is_the_same_policy_in_transformers(run):
    torch = needs.package("torch")
    transformers = needs.package("transformers")
    import jax.numpy as jnp

    from mlagent_jax import models
    from mlagent_jax.checkpoints import hugging_face
    from mlagent_jax.models.tokenizer import Tokenizer

    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "export", dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(run / "export")
    tokenizer = Tokenizer.load(run / "export")
    config, graph, params = hugging_face.load(run / "export", dtype=jnp.float32)
    assert config.model_type == "qwen2"
    prompts = sorted({record.prompt for record in TrajectoryStore.open(run / "trajectories" / "collect")})
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        assert their_tokenizer.encode(prompt, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == prompt
    ids = tokenizer.encode(prompts[0])
    ours = models.logits(graph, params, models.hidden_states(graph, params, jnp.asarray([ids])))
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), wanted, atol=1e-4)


def test_a_workdir_of_another_config_is_refused(run):
    process = subprocess.run(
        [
            *(sys.executable, "-m", "mlagent_jax.train", "--config=configs/smoke.py", f"--workdir={run}", *SMALL),
            "--config.rl.value_clip=0.3",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert process.returncode != 0
    assert "rl.value_clip: 0.2 -> 0.3" in process.stderr


def forget_rl(workdir):
    """As if stage rl had not begun, but for the results in the queue."""
    facts = json.loads((workdir / "run.json").read_text())
    facts["done"] = [stage for stage in facts["done"] if stage not in ("rl", "evaluate", "export")]
    (workdir / "run.json").write_text(json.dumps(facts))
    for name in ("checkpoints/rl", "export", "report", "evaluation"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    for name in ("metrics.jsonl", "trajectories/rl.jsonl"):
        (workdir / name).unlink()


def test_the_configs_for_7b_run_in_turn_on_a_tiny_checkpoint_and_two_devices(run, tmp_path):
    """`collect.py`, `sft.py`, `rl.py`, `evaluate.py` and `export.py` themselves, with overrides of size and place."""
    tasks = json.loads((run / "config.json").read_text())["tasks"]
    small = (
        "--config.tasks.train=" + ",".join(tasks["train"]),
        "--config.tasks.held_out=" + ",".join(tasks["held_out"]),
        "--config.tasks.micro_train=1",
        "--config.tasks.micro_held_out=0",
        "--config.workers.slots=2",
        "--config.workers.sandbox=bubblewrap",
        "--config.prompt.profile=compact",
        "--config.prompt.max_prompt_tokens=320",
        "--config.prompt.max_action_tokens=40",
        "--config.collect.trajectories=2",
        "--config.collect.steps=2",
        "--config.evaluate.states_held_in=2",
        "--config.evaluate.states_held_out=2",
        "--config.sft.row_tokens=384",
        "--config.evaluate.samples=1",
        "--config.evaluate.episode_tasks_held_in=1",
        "--config.evaluate.episode_tasks_held_out=1",
        "--config.evaluate.trajectories=1",
        "--config.evaluate.steps=1",
    )
    trained = (
        *small,
        f"--config.pool.trajectories={tmp_path / 'collect'}",
        f"--config.workers.store={tmp_path / 'collect' / 'store'}",
        "--config.workers.queue=",
    )
    shutil.copytree(run / "export", tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.7,  "eos_token_id": [1]}')
    sft = (
        *trained,
        f"--config.policy.checkpoint={tmp_path / 'base'}",
        "--config.sft.batch_size=4",
        "--config.optimizer.placement=host",
    )
    rl = (
        *trained,
        "--config.optimizer.placement=host",
        f"--config.policy.checkpoint={tmp_path / 'sft' / 'export'}",
        "--config.rl.iterations=2",
        "--config.rl.states=4",
        "--config.rl.samples=2",
        "--config.rl.minibatches=1",
        "--config.rl.micro_batch=4",
    )
    for config, workdir, overrides in (
        ("collect", "collect", small),
        ("sft", "sft", (*sft, "--config.sft.micro_batch=2")),
        ("rl", "rl", rl),
        ("evaluate", "evaluate", (*trained, f"--config.policy.checkpoint={tmp_path / 'rl' / 'export'}")),
    ):
        finish(start(config, tmp_path / workdir, *overrides, devices=2), tmp_path / workdir)
    assert set(json.loads((tmp_path / "rl" / "report" / "summary.json").read_text())["policies"]) == {"sft", "rl"}
    assert [r["masked"] for r in jsonl.read(tmp_path / "rl" / "metrics.jsonl")] == [0, 0]
    assert set(json.loads((tmp_path / "evaluate" / "report" / "summary.json").read_text())["policies"]) == {"base"}

    generation = (tmp_path / "rl" / "export" / "generation_config.json").read_bytes()
    assert generation == (tmp_path / "base" / "generation_config.json").read_bytes()
    exported = (tmp_path / "rl" / "export" / "model.safetensors").read_bytes()
    # Given the outcomes that are recorded, a run that is killed and goes on trains the same parameters bit by bit.
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "rl", again)
    forget_rl(again)
    executed = jobs(again, "attempts > 0")
    kill_when(start("rl", again, *rl, devices=2), again, lambda: jsonl.read(again / "metrics.jsonl"))
    finish(start("rl", again, *rl, devices=2), again)
    assert (again / "export" / "model.safetensors").read_bytes() == exported
    assert jobs(again, "attempts > 0") == executed
    assert jobs(again, "attempts > 1") == 0

    shutil.rmtree(tmp_path / "rl" / "export")
    facts = json.loads((tmp_path / "rl" / "run.json").read_text())
    facts["done"].remove("export")
    (tmp_path / "rl" / "run.json").write_text(json.dumps(facts))
    finish(start("export", tmp_path / "rl", *rl), tmp_path / "rl")
    assert (tmp_path / "rl" / "export" / "model.safetensors").read_bytes() == exported
