"""A run of two processes with four (simulated) devices each: every stage, one batch for all, one workdir."""

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from postgres_server import PostgresServer, need_binaries

from environments.queue.base import QUEUE_VARIABLE
from mlagent_jax.runtime import jsonl

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


def start(workdir, *overrides, processes=1, devices=DEVICES, program=("-m", "mlagent_jax.train")):
    """The processes of one run, with the files WORKDIR.INDEX.log of their output (and .told of what they tell)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, *program, "--config=configs/smoke.py", f"--workdir={workdir}"]
    # On a busy machine one process may be far behind the other.
    flags = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_cpu_collective_timeout_seconds=300 --xla_cpu_collective_call_terminate_timeout_seconds=300"
    )
    started = []
    for index in range(processes):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "MLAGENT_TEST_TOLD": f"{workdir}.{index}.told"}
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
                "MLAGENT_HEARTBEAT_SECONDS": "30",
                # It serves the first one alone, which would then wait for the others, and Gloo waits for 30 s.
                "JAX_ENABLE_COMPILATION_CACHE": "false",
            }
        with open(f"{workdir}.{index}.log", "ab") as log:
            started.append(
                subprocess.Popen(
                    [*command, *TINY, *overrides], stdout=log, stderr=log, env=environment, process_group=0
                )
            )
    return started


def finish(started, workdir, statuses=(0,), timeout=600):
    try:
        for index, process in enumerate(started):
            assert process.wait(timeout) in statuses, Path(f"{workdir}.{index}.log").read_text()[-4000:]
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


class Workers:
    """Hosts of one worker each on a queue in PostgreSQL, of which one after the other dies and is replaced.

    Args:
      run: workdir whose tasks and store they have.
      deaths: how many results there are when the next one dies, in order.
      seed: of which one that is.
    """

    def __init__(self, folder, run, url, deaths, seed):
        import psycopg

        self._folder, self._run, self._url = folder, run, url
        self._deaths, self._dice = list(deaths), random.Random(seed)
        self._database, self._no_table = psycopg.connect(url, autocommit=True), psycopg.errors.UndefinedTable
        self._alive, self._hosts = {}, 0
        self.lost = []
        """Ids of the jobs that were held by those that died."""
        for _ in range(2):
            self._start()

    def ask(self, query, *values):
        """Rows; none before there is a table."""
        with contextlib.suppress(self._no_table):
            return self._database.execute(query, values).fetchall()
        return []

    def results(self):
        """How many there are."""
        return sum(count for (count,) in self.ask("select count(*) from mlagent_jobs where state = 'done'"))

    def lose_one(self):
        """Kill a worker that holds a job, where it is time for that, and start another host. The first job that is lost
        so was lost before as often as it may be."""
        if not self._deaths or self.results() < self._deaths[0]:
            return
        held = self._held()
        if not held:
            return
        job, pid = self._dice.choice(held)
        os.kill(pid, signal.SIGSTOP)
        spent = "attempts = max_attempts" if not self.lost else "attempts = attempts"
        # While the worker is stopped, and not after its end: the lease may run out meanwhile.
        if (job, pid) not in self._held() or not self.ask(
            f"update mlagent_jobs set {spent} where id = %s and state = 'leased' returning id", job
        ):  # It was handed in, or given to another.
            os.kill(pid, signal.SIGCONT)
            return
        os.killpg(pid, signal.SIGKILL)
        self._alive.pop(pid).wait()
        self.lost.append(job)
        self._deaths.pop(0)
        self._start()

    def close(self):
        self._database.close()
        for process in self._alive.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _held(self):
        """(job, process of the worker that has it)."""
        return self.ask(
            "select id, pid from mlagent_jobs join mlagent_workers on worker = name where state = 'leased' order by id"
        )

    def _start(self):
        self._hosts += 1
        program = [sys.executable, str(Path(__file__).with_name("slow_worker.py"))]
        folders = [f"--tasks={self._run / 'tasks'}", f"--store={self._run / 'store'}"]
        with open(self._folder / f"host{self._hosts}.log", "ab") as log:
            process = subprocess.Popen(
                [*program, *folders, "--slots=1", "--sandbox=bubblewrap", "--lease_seconds=2"],
                stdout=log,
                stderr=log,
                env=os.environ | {QUEUE_VARIABLE: self._url, "PYTHONPATH": os.pathsep.join(sys.path)},
                process_group=0,
            )
        self._alive[process.pid] = process


def told(path):
    """What a process told of each iteration, in their order; one that is done again is the same again."""
    found = {}
    for each in jsonl.read(path):
        assert found.setdefault(each["iteration"], each) == each
    return [found[iteration] for iteration in sorted(found)]


def iterations(workdir):
    """Steps of rl that are done, as its metrics tell."""
    path = workdir / "metrics.jsonl"
    return [record["step"] for record in jsonl.read(path) if record["stage"] == "rl"] if path.exists() else []


@pytest.fixture
def server():
    made = PostgresServer(need_binaries())
    yield made
    made.remove()


@pytest.mark.postgres
def test_a_run_is_stopped_and_killed_and_goes_on_while_workers_are_killed_at_random(run, server, tmp_path):
    """SIGTERM to the process that is not the first, as where its host alone is taken back; then SIGKILL to it between
    an update and what is to be kept of that, which ends the first one too; SIGKILL to workers all the while. Both
    processes train on the same rows, every job has one result and counts once."""
    workdir = tmp_path / "stopped"
    overrides = (
        "--config.stages=sft,rl",
        "--config.sft.optimizer=adamw",  # compiled in less time than muon, which the other run has
        "--config.mesh.tensor=2",
        "--config.rl.iterations=4",
        f"--config.pool.trajectories={run}",
        f"--config.tasks.folder={run / 'tasks'}",
        f"--config.workers.store={run / 'store'}",
        f"--config.workers.queue={server.url()}",
        "--config.workers.slots=0",
    )
    program = (str(Path(__file__).with_name("telling_trainer.py")),)
    dice = random.Random(0)
    started = start(workdir, *overrides, processes=2, program=program)
    end = time.monotonic() + 1200

    def attend(until):
        """Lose workers until a condition holds or a process of the run has ended."""
        while not until() and all(process.poll() is None for process in started):
            assert time.monotonic() < end
            workers.lose_one()
            time.sleep(0.02)

    with contextlib.closing(Workers(tmp_path, run, server.url(), sorted(dice.sample(range(2, 28), 5)), 0)) as workers:
        attend(until=lambda: iterations(workdir))
        if started[1].poll() is None:
            os.kill(started[1].pid, signal.SIGTERM)
        finish(started, workdir, statuses=(75,))
        done = iterations(workdir)
        assert 1 <= len(done) < 4

        started = start(workdir, *overrides, processes=2, program=program)
        updates = len(jsonl.read(f"{workdir}.1.told"))
        attend(until=lambda: len(jsonl.read(f"{workdir}.1.told")) > updates)
        started[1].kill()
        finish(started[1:], workdir, statuses=(-signal.SIGKILL,))
        finish(started[:1], workdir, statuses=(-signal.SIGABRT, 1))  # by heartbeats, or by a collective that fails

        started = start(workdir, *overrides, processes=2, program=program)
        attend(until=lambda: False)
        finish(started, workdir)
        jobs = workers.ask("select id, state, attempts, consumed_step from mlagent_jobs")

    assert iterations(workdir) == [1, 2, 3, 4]
    one, other = (told(Path(f"{workdir}.{index}.told")) for index in range(2))
    assert one == other, "both processes trained on the same rows, with the same ones masked, to the same parameters"
    assert [each["iteration"] for each in one] == [0, 1, 2, 3]
    assert {id: (state, step) for id, state, _, step in jobs} == {
        id: ("dead" if id == workers.lost[0] else "done", each["iteration"]) for each in one for id in each["jobs"]
    }, "every action has one result, and was trained on once"
    assert [id for each in one for id in each["masked"]] == workers.lost[:1]
    assert len(workers.lost) >= 3
    assert {id for id, _, attempts, _ in jobs if attempts > 1} >= set(workers.lost)
    records = jsonl.read(workdir / "trajectories" / "rl.jsonl")
    assert [record["step"] for record in records] == [step for step in (1, 2, 3, 4) for _ in range(8)]
