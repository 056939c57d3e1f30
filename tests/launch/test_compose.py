"""launch/compose.sh and launch/image.sh: the services are valid, and what is missing is named."""

import shutil
import subprocess

import pytest

GOOD = ("--config=configs/smoke.py", "--name=run-1", "--workers=3", "--config.seed=1")


@pytest.mark.slow
def test_a_dry_run_shows_the_commands_and_the_trainers_settings(launch, programs, tmp_path):
    programs("docker", '[ "$1" != image ]')
    result = launch("compose.sh", *GOOD, f"--runs={tmp_path}/runs", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "missing here: the engine has no image mlagent-jax:local: launch/image.sh builds it" in result.stderr
    assert "--scale=worker=3" in result.stdout
    assert "--config.seed=1 --workdir=/runs/run-1 --config.workers.slots=0" in result.stdout
    assert not (tmp_path / "runs").exists()
    result = launch("compose.sh", *GOOD)
    assert result.returncode == 1
    assert "the engine has no image" in result.stderr


@pytest.mark.slow
def test_an_image_is_built_without_a_network_in_the_build(launch, programs, tmp_path):
    programs("docker", "exit 0")
    programs("debootstrap", "exit 0")
    result = launch("image.sh", "--base=debootstrap", "--extras=tpu,postgres", f"--wheels={tmp_path}", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "pip wheel" in result.stdout
    assert "--network=none" in result.stdout
    assert "--build-arg=EXTRAS=tpu,postgres" in result.stdout
    result = launch("image.sh", "--name=x", "--dry_run")
    assert "unknown option --name=x" in result.stderr


def test_compose_takes_the_file():
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("no Compose (Debian: apt-get install docker-compose)")
    done = subprocess.run(
        [program, "--file=launch/compose.yaml", "config", "--services"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TRAINER_PASSWORD": "x", "WORKER_PASSWORD": "y", "MLAGENT_ARGUMENTS": "--a=b"},
        check=False,
    )
    assert sorted(done.stdout.split()) == ["queue", "roles", "trainer", "worker"], done.stderr
