"""A run on six hosts that have nothing but a network and a shared disk: two trainers with one mesh, PostgreSQL, three
workers. One worker is cut off and one is killed while they hold jobs, and one trainer is told to stop; the run goes on
with one trainer on a slice of another size."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import needs
import pytest
from hosts import Network, can_be_made
from postgres_server import PostgresServer, need_binaries
from tiny_run import SETTINGS

from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.interruption import PREEMPTED

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

ROOT = Path(__file__).parents[2]
PATIENCE = 900
"""Seconds, on a machine that is busy with much else."""


@pytest.fixture
def network():
    needs.need(can_be_made(), "no network namespaces: run as root with iproute2 (Debian: apt-get install iproute2)")
    made = Network("queue", "first", "second", "lost", "killed", "good")
    yield made
    made.close()


@pytest.fixture
def server(network):
    binaries = need_binaries()
    with network.on("queue"):
        made = PostgresServer(binaries, network.addresses["queue"])
    yield made
    made.remove()


@pytest.fixture
def start(network, tmp_path):
    """Starts a program on a host; its output is in the file HOST.log."""
    started = []

    def run(host, *command, **environment):
        with open(tmp_path / f"{host}.log", "ab") as log:
            process = subprocess.Popen(
                network.command(host, *map(str, command)),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                process_group=0,
                env=os.environ | environment,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_run_loses_two_of_three_workers_and_a_trainer_and_goes_on_on_another_slice(network, server, start, tmp_path):
    import psycopg

    workdir = tmp_path / "run"
    with network.on("good"):
        database = psycopg.connect(server.url(), autocommit=True)

    def ask(query, *values):
        try:
            return database.execute(query, values).fetchall()
        except psycopg.errors.UndefinedTable:
            return []

    def until(condition, what):
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            logs = {path.name: path.read_text()[-1500:] for path in tmp_path.glob("*.log")}
            assert time.monotonic() < end, (what, logs)
            time.sleep(0.02)
        return found

    def train(hosts, devices):
        """The trainer's processes, one a host, of so many devices each."""
        together = {
            "JAX_COORDINATOR_ADDRESS": f"{network.addresses[hosts[0]]}:8476",
            "JAX_NUM_PROCESSES": str(len(hosts)),
        }
        return [
            start(
                host,
                *(sys.executable, "-m", "mlagent_jax.train", *SETTINGS, "--config.stages=collect,sft,rl"),
                *(f"--config.workers.queue={server.url()}", f"--workdir={workdir}"),
                JAX_PLATFORMS="cpu",
                XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
                **(together | {"JAX_PROCESS_ID": str(index)} if len(hosts) > 1 else {}),
            )
            for index, host in enumerate(hosts)
        ]

    def statuses(trainers):
        return [process.wait(PATIENCE) for process in trainers]

    def holds(worker):
        return ask(
            "select id from mlagent_jobs join mlagent_workers on worker = name where state = 'leased' and pid = %s",
            worker.pid,
        )

    trainers = train(("first", "second"), devices=1)
    workers = {
        host: start(
            host,
            *("launch/images/worker.sh", workdir / "tasks", f"--queue={server.url()}", f"--store={workdir}/store"),
            *("--slots=1", "--sandbox=bubblewrap", "--lease_seconds=4"),
        )
        for host in ("lost", "killed", "good")
    }
    # A wire that is pulled while a job is held: its result never arrives.
    until(lambda: holds(workers["lost"]), "a job on the host that is to be cut off")
    network.cut("lost")
    until(lambda: holds(workers["killed"]), "a job on the host that is to be killed")
    os.killpg(workers["killed"].pid, signal.SIGKILL)

    until(lambda: (workdir / "metrics.jsonl").exists() and metrics(workdir, "rl"), "the first iteration")
    trainers[1].send_signal(signal.SIGTERM)
    assert statuses(trainers) == [PREEMPTED, PREEMPTED]
    network.restore("lost")
    assert statuses(train(("first",), devices=4)) == [0]

    assert metrics(workdir, "rl") == [1, 2]
    states = ask("select state, count(*) from mlagent_jobs group by state")
    assert [state for state, _ in states] == ["done"]
    # What the two held was given to others, and counted once.
    assert ask("select count(*) from mlagent_jobs where attempts > 1") >= [(1,)]
    records = jsonl.read(workdir / "trajectories" / "rl.jsonl")
    assert [record["step"] for record in records] == sorted(4 * [1, 2])
    assert {record["outcome"]["kind"] for record in records}.isdisjoint({"infrastructure_error"})


def metrics(workdir, stage):
    """Steps of a stage that were recorded."""
    return [record["step"] for record in jsonl.read(workdir / "metrics.jsonl") if record["stage"] == stage]
