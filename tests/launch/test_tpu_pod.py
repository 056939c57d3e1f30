"""launch/tpu_pod.sh against a stand-in for gcloud: what it would do, what it refuses, and how it goes on."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOOD = (
    "--config=configs/rl_7b_v5e_16.py",
    "--config.workers.queue=postgresql://trainer@10.0.0.3/mlagent",
    "--name=pod",
    "--zone=us-west4-a",
    "--project=someone",
    "--nfs=10.0.0.2:/runs",
    "--workdir=/mnt/mlagent/it's",
)
GCLOUD = """#!/bin/bash
# States in $FAKE/state; a run is taken back, then told to stop, then not reached, then ends as $FAKE/last says.
echo "$*" >>"$FAKE/calls"
case "$*" in
  "config get-value"*) echo me@example.org ;;
  *" create "*) echo READY >"$FAKE/state" ;;
  *" delete "*) rm -f "$FAKE/state" ;;
  *" describe "*) cat "$FAKE/state" 2>/dev/null ;;
  *" scp "*) tar -tzf "$5" | grep -qx launch/host.sh && cp "$6" "$FAKE/environment" ;;
  *"cat mlagent/run/status && rm mlagent/run/status"*) cat "$FAKE/status" && rm "$FAKE/status" ;;
  *launch/host.sh*)
    echo run >>"$FAKE/runs"
    case "$(wc -l <"$FAKE/runs")" in
      1) echo PREEMPTED >"$FAKE/state"; exit 255 ;;
      2) echo 75 >"$FAKE/status"; exit 1 ;;
      3) exit 255 ;;
      *) cat "$FAKE/last" >"$FAKE/status"; exit "$(cat "$FAKE/last")" ;;
    esac ;;
esac
"""


@pytest.fixture
def gcloud(tmp_path):
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(GCLOUD)
    program.chmod(0o755)
    return tmp_path


def launch(fake, *arguments, **environment):
    return subprocess.run(
        ["launch/tpu_pod.sh", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ
        | {"PATH": f"{fake}/bin:{os.environ['PATH']}", "FAKE": str(fake), "MLAGENT_RETRY_SECONDS": "0"}
        | environment,
    )


@pytest.mark.slow
def test_a_run_goes_on_after_pre_emption_and_after_sigterm(gcloud):
    (gcloud / "last").write_text("0")
    result = launch(gcloud, *GOOD, "--spot", "--delete", "--environment=PGPASSWORD", PGPASSWORD="a 'secret'")
    assert result.returncode == 0, result.stderr
    calls = (gcloud / "calls").read_text()
    assert calls.count(" create ") == 2
    assert "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot" in calls
    assert len((gcloud / "runs").read_text().split()) == 4
    assert "taken back" in result.stderr
    assert result.stderr.count("told to stop and has saved") == 1
    assert result.stderr.count("the connection was lost") == 1
    assert not (gcloud / "state").exists()
    assert "secret" not in calls
    sourced = subprocess.run(
        ["bash", "-c", '. "$0"; printf %s "$PGPASSWORD"', gcloud / "environment"], capture_output=True, text=True
    )
    assert sourced.stdout == "a 'secret'"


@pytest.mark.slow
def test_a_trainer_that_fails_is_not_started_again(gcloud):
    (gcloud / "last").write_text("1")
    result = launch(gcloud, *GOOD)
    assert result.returncode == 1
    assert "the trainer ended with status 1" in result.stderr
    assert len((gcloud / "runs").read_text().split()) == 4


@pytest.mark.slow
def test_a_dry_run_prints_the_commands_and_changes_nothing(gcloud):
    result = launch(gcloud, *GOOD, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert " create " not in (gcloud / "calls").read_text()
    assert "gcloud compute tpus tpu-vm create pod --zone=us-west4-a" in result.stdout
    assert "--config=configs/rl_7b_v5e_16.py" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--workdir=runs/x", "a slice's own disk goes with it"),
        ("--config.workers.queue=sqlite:///queue.db", "workers on other hosts need postgresql://"),
        ("--config.rl.value_clipp=1", "did you mean config.rl.value_clip?"),
        ("--slice=h100-8", "is no TPU slice"),
        ("--zones=x", "unknown option --zones=x"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(gcloud, wrong, message):
    result = launch(gcloud, *GOOD, wrong)
    assert result.returncode != 0
    assert message in result.stderr
    calls = gcloud / "calls"
    assert not calls.exists() or " create " not in calls.read_text()
