"""launch/workers.sh: what it installs on a CPU host, and what it refuses."""

import shutil
import subprocess

import pytest

GOOD = (
    "--config=configs/rl.py",
    "--config.workers.queue=postgresql://trainer@queue.example:5433/mlagent?sslmode=require",
    "--config.workers.store=gs://bucket/store",
    "--slots=6",
)


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "tasks" / "digits").mkdir(parents=True)
    (tmp_path / "tasks" / "digits" / "task.json").write_text("{}")
    return tmp_path / "tasks"


@pytest.mark.slow
def test_a_dry_run_shows_the_commands_and_a_unit_that_systemd_takes(launch, programs, tasks, tmp_path):
    programs("docker", "exit 0")
    programs("systemctl", 'echo "$*" >>"$FAKE/calls"')
    result = launch(
        "workers.sh", *GOOD, f"--tasks={tasks}", "--environment=PGPASSWORD", "--dry_run", PGPASSWORD="secret"
    )
    assert result.returncode == 0, result.stderr
    assert "secret" not in result.stdout + result.stderr
    assert "environments.sandbox.rootfs.build --docker" in result.stdout
    assert "--store=gs://bucket/store" in result.stdout
    assert "systemctl restart mlagent-worker.service" in result.stdout
    assert not (tmp_path / "calls").exists()
    unit = (
        result.stdout[result.stdout.index("[Unit]") : result.stdout.index("WantedBy=")] + "WantedBy=multi-user.target\n"
    )
    assert "--slots=6 --sandbox=docker" in unit
    if analyze := shutil.which("systemd-analyze"):
        python = unit.split('ExecStart="')[1].split('"')[0]
        path = tmp_path / "mlagent-worker.service"
        path.write_text(unit.replace(python, "/bin/true"))  # a dry run makes no environment
        done = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True)
        assert "mlagent-worker.service" not in done.stderr


@pytest.mark.slow
def test_all_that_is_missing_is_named_at_once(launch, programs, tmp_path):
    programs("docker", "exit 1")
    programs("systemctl", 'echo "$*" >>"$FAKE/calls"')
    result = launch("workers.sh", "--config=configs/rl.py", "--config.workers.store=", f"--tasks={tmp_path}")
    assert result.returncode == 1
    for message in (
        "other hosts do not reach this one by that name",
        "config.workers.store is empty",
        "no prepared task is there",
        "no Docker engine answers",
    ):
        assert message in result.stderr
    assert not (tmp_path / "calls").exists()
