"""Trackers get every record once, whenever they can be reached; the libraries are the real ones, without a server."""

import subprocess
import sys
import time
from pathlib import Path

import needs
import pytest

from mlagent_jax.runtime import trackers
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.metrics import MetricsLog
from mlagent_jax.runtime.trackers import Follower


class Service:
    """A server: takes records, and is away for a while."""

    def __init__(self, away=0):
        self.records, self.away, self.closed = [], away, 0

    def connect(self):
        if self.away:
            self.away -= 1
            raise ConnectionError("nobody answers")
        return self

    def last_steps(self):
        return {record["stage"]: record["step"] for record in self.records}

    def send(self, records):
        self.records += records

    def close(self):
        self.closed += 1


def record(step, stage="rl"):
    return {"stage": stage, "step": step, "seconds": float(step), "reward": 0.5}


def test_what_a_service_missed_while_it_was_away_is_sent_in_order_and_once():
    service = Service(away=3)
    follower = Follower("service", service.connect, [record(1)], retry_seconds=0.01)
    follower.add(record(2))
    follower.add(record(1, "evaluate"))
    deadline = time.monotonic() + 60
    while len(service.records) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    follower.close()
    assert service.records == [record(1), record(2), record(1, "evaluate")]
    assert service.closed == 1


def test_one_that_never_answers_holds_nothing_up(caplog):
    follower = Follower("service", Service(away=10**9).connect, [], retry_seconds=60.0)
    follower.add(record(1))
    started = time.monotonic()
    follower.close()
    assert time.monotonic() - started < trackers.CLOSE_SECONDS
    assert "metrics.jsonl has them" in caplog.text


def test_a_run_that_crashed_sends_the_rest_when_it_is_opened_again(tmp_path):
    program = (
        "import os, sys, time\n"
        "from mlagent_jax.runtime.metrics import MetricsLog\n"
        "from mlagent_jax.runtime.trackers import Follower\n"
        "def never(): raise ConnectionError\n"
        "log = MetricsLog(sys.argv[1])\n"
        "log.add_followers([Follower('service', never, [])])\n"
        "log.write('rl', 1, {'reward': 0.5})\n"
        "log.write('rl', 2, {'reward': float('nan')})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", program, tmp_path], cwd=root, check=False)
    service = Service()
    with MetricsLog(tmp_path) as log:
        log.rewind("rl", 1)
        log.add_followers([Follower("service", service.connect, log.read())])
        log.write("rl", 2, {"reward": 0.75})
    assert [(r["step"], r["reward"]) for r in service.records] == [(1, 0.5), (2, 0.75)]


def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
    needs.package("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for steps in ((1, 2), (1, 2, 3)):
        (follower,) = trackers.follow(
            ("mlflow",), "project", "run-1", {"rl": {"clip": 0.2}}, str(tmp_path), [record(step) for step in steps]
        )
        follower.close()
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("project").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"rl.clip": "0.2"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "rl/reward")] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
    ]


@pytest.mark.slow
def test_wandb_without_a_network_keeps_the_records_for_a_later_sync(tmp_path, monkeypatch):
    needs.package("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # of its own process, on a busy machine
    (follower,) = trackers.follow(("wandb",), "project", "run-1", {"rl": {"clip": 0.2}}, str(tmp_path), [record(1)])
    follower.add(record(7))
    follower.close(300)
    (file,) = tmp_path.glob("wandb/offline-run-*-run-1/run-run-1.wandb")
    deadline = time.monotonic() + 60
    while b"rl/reward" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)  # its process writes on for a moment
    for text in (b"rl/reward", b"rl/step", b"rl.clip"):
        assert text in file.read_bytes()


def test_one_that_is_not_installed_is_said_at_the_start(monkeypatch):
    monkeypatch.setitem(trackers.MODULES, "wandb", "no_such_module")
    with pytest.raises(ConfigError, match=r"'wandb', which is not installed: pip install '\.\[wandb\]'"):
        trackers.check_installed(("wandb",))
