"""launch/slurm.sh against a stand-in for Slurm: what it submits, and how it waits."""

import sys
from pathlib import Path

import pytest

GOOD = (
    "--config=configs/rl_7b_h100_8.py",
    "--config.workers.queue=postgresql://trainer@queue.example/mlagent",
    "--config.workers.store=/shared/store",
    "--name=run-1",
    "--workers=3",
)
SBATCH = """
echo "$*" >>"$FAKE/calls"
echo "$MLAGENT_QUEUE $PGPASSWORD" >>"$FAKE/environments"
wc -l <"$FAKE/calls"
"""
SCONTROL = """
echo x >>"$FAKE/looks"
case "$(wc -l <"$FAKE/looks")" in 1) state=RUNNING ;; 2) state=REQUEUED ;; *) state="$(cat "$FAKE/end")" ;; esac
echo "JobId=2 JobName=run-1 JobState=$state Reason=None"
"""


@pytest.fixture
def slurm(programs, launch, tmp_path):
    programs("sbatch", SBATCH)
    programs("scontrol", SCONTROL)
    programs("squeue", '[ ! -e "$FAKE/queue" ] || cat "$FAKE/queue"')
    (tmp_path / "end").write_text("COMPLETED")

    def run(*arguments, **environment):
        venv = Path(sys.prefix)
        return launch("slurm.sh", *GOOD, *arguments, f"--workdir={tmp_path}/run", MLAGENT_VENV=str(venv), **environment)

    return run


@pytest.mark.slow
def test_trainer_and_workers_are_submitted_with_a_password_each_and_waited_for(slurm, tmp_path):
    secrets = {"PGPASSWORD": "s3cret-t", "WORKER_PGPASSWORD": "s3cret-w"}
    result = slurm("--wait", "--environment=PGPASSWORD", "--nodes=2", "--partition=gpu", **secrets)
    assert result.returncode == 0, result.stderr
    workers, trainer = (tmp_path / "calls").read_text().splitlines()
    assert "--array=1-3" in workers
    assert f"{tmp_path}/run/tasks --store=/shared/store --slots=8 --sandbox=docker" in workers
    assert "--nodes=2" in trainer
    assert "--gpus-per-node=8 --partition=gpu" in trainer
    assert trainer.endswith(f"--workdir={tmp_path}/run --config.workers.slots=0")
    first, second = (tmp_path / "environments").read_text().splitlines()
    assert first == "postgresql://worker@queue.example/mlagent s3cret-w"
    assert second.endswith(" s3cret-t")
    assert "s3cret" not in workers + trainer
    assert len((tmp_path / "looks").read_text().split()) == 3


@pytest.mark.slow
def test_started_again_it_waits_for_the_job_there_is_and_says_how_it_ended(slurm, tmp_path):
    (tmp_path / "queue").write_text("41\n")
    (tmp_path / "end").write_text("FAILED")
    result = slurm("--wait")
    assert result.returncode == 1
    assert "the trainer's job 41 ended: FAILED" in result.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_what_cannot_work_is_refused(slurm, tmp_path):
    result = slurm("--config.workers.queue=postgresql://localhost/mlagent")
    assert result.returncode == 1
    assert "other hosts do not reach this one by that name" in result.stderr
    result = slurm("--dry_run")
    assert result.stdout.count("sbatch --job-name=run-1") == 2
    assert not (tmp_path / "calls").exists()
