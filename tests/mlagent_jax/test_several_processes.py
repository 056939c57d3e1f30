"""A run of two processes with four (simulated) devices each: every stage, one batch for all, one workdir."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlagent_jax.data import jsonl

pytestmark = pytest.mark.slow

DEVICES = 4
TINY = (
    "--config.tasks.train=digits",
    "--config.tasks.held_out=",
    "--config.tasks.micro_train=1",
    "--config.tasks.micro_held_out=0",
    "--config.policy.hidden_size=32",
    "--config.policy.num_layers=1",
    "--config.policy.num_heads=4",
    "--config.policy.num_kv_heads=2",
    "--config.policy.intermediate_size=64",
    "--config.policy.compute_dtype=float32",
    "--config.tokenizer.vocab_size=512",
    "--config.prompt.max_action_tokens=24",
    "--config.workers.sandbox=bubblewrap",
    "--config.sft.epochs=3",
    "--config.rl.iterations=2",
    "--config.rl.minibatches=1",
    "--config.rl.epochs=1",
    "--config.rl.max_staleness=1",
    "--config.evaluate.policies=rl",
    "--config.evaluate.states_held_in=2",
    "--config.sampling.slots=8",
    "--config.mesh.data=2",
    "--config.mesh.fsdp=2",
)


def start(workdir, *overrides, processes=1, devices=DEVICES):
    """The processes of one run, and the files of their output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "mlagent_jax.train", "--config=configs/smoke.py", f"--workdir={workdir}"]
    # On a busy machine one process may be far behind the other.
    flags = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_cpu_collective_timeout_seconds=300 --xla_cpu_collective_call_terminate_timeout_seconds=300"
    )
    started = []
    for index in range(processes):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        with open(f"{workdir}.{index}.log", "ab") as log:
            started.append(
                subprocess.Popen(
                    [*command, *TINY, *overrides], stdout=log, stderr=log, env=environment, process_group=0
                )
            )
    return started


def finish(started, workdir, status=0, timeout=600):
    try:
        for index, process in enumerate(started):
            assert process.wait(timeout) == status, Path(f"{workdir}.{index}.log").read_text()[-4000:]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "both"
    stages = "--config.stages=collect,sft,rl,evaluate,export"
    finish(start(workdir, stages, "--config.mesh.tensor=2", processes=2), workdir)
    return workdir


def test_both_train_on_one_batch_whose_jobs_each_handed_out_half_of(run):
    records = jsonl.read(run / "trajectories" / "rl.jsonl")
    assert [record["step"] for record in records] == [1] * 8 + [2] * 8
    rewards = [record["outcome"]["reward"] for record in records]
    metrics = [record for record in jsonl.read(run / "metrics.jsonl") if record["stage"] == "rl"]
    assert [record["step"] for record in metrics] == [1, 2]
    assert [record["masked"] for record in metrics] == [0, 0]
    np.testing.assert_allclose([m["reward"] for m in metrics], [np.mean(rewards[:8]), np.mean(rewards[8:])])
    with contextlib.closing(sqlite3.connect(run / "queue.db")) as db:
        assert db.execute("select count(*) from mlagent_jobs where state != 'done' or attempts > 1").fetchone() == (0,)
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert set(summary["policies"]) == {"rl"}
    facts = json.loads((run / "run.json").read_text())
    assert facts["done"] == ["collect", "sft", "rl", "evaluate", "export"]
    assert (run / "export" / "model.safetensors").is_file()


def test_sft_is_what_one_device_makes_of_the_same_steps(run, tmp_path):
    alone = tmp_path / "alone"
    overrides = (
        "--config.stages=sft",
        f"--config.pool.trajectories={run}",
        "--config.mesh.fsdp=1",
        "--config.mesh.data=1",
    )
    finish(start(alone, *overrides, devices=1), alone)
    both, one = (
        [record["loss"] for record in jsonl.read(workdir / "metrics.jsonl") if record["stage"] == "sft"]
        for workdir in (run, alone)
    )
    assert len(one) >= 2
    np.testing.assert_allclose(both, one, rtol=1e-3)


def iterations(workdir):
    """Steps of rl that are done, as its metrics tell."""
    path = workdir / "metrics.jsonl"
    return [record["step"] for record in jsonl.read(path) if record["stage"] == "rl"] if path.exists() else []


def test_told_to_stop_one_takes_the_other_along_and_both_go_on_where_they_were(run, tmp_path):
    """SIGTERM to the process that is not the first, as where its host alone is taken back."""
    workdir = tmp_path / "stopped"
    overrides = (
        "--config.stages=sft,rl",
        "--config.mesh.tensor=2",
        "--config.rl.iterations=4",
        f"--config.pool.trajectories={run}",
        f"--config.workers.store={run / 'store'}",
    )
    started = start(workdir, *overrides, processes=2)
    deadline = time.monotonic() + 600
    while not iterations(workdir) and all(process.poll() is None for process in started):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    if started[1].poll() is None:
        os.kill(started[1].pid, signal.SIGTERM)
    finish(started, workdir, status=75)
    done = iterations(workdir)
    assert 1 <= len(done) < 4

    finish(start(workdir, *overrides, processes=2), workdir)
    assert iterations(workdir) == [1, 2, 3, 4]
    records = jsonl.read(workdir / "trajectories" / "rl.jsonl")
    assert [record["step"] for record in records] == [step for step in (1, 2, 3, 4) for _ in range(8)]
    with contextlib.closing(sqlite3.connect(workdir / "queue.db")) as db:
        consumed = db.execute("select count(*) from mlagent_jobs where consumed_step is not null").fetchone()
    assert consumed == (32,), "every action was trained on once"
