"""The entry refuses what cannot work, before any work is done, and says what to do."""

import os
import subprocess
import sys

import pytest

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.flags import check_arguments, read_config


def train(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mlagent_jax.train", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        check=False,
    )


def error_of(result):
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr


def test_an_unknown_field_is_refused_with_the_nearest(tmp_path):
    result = train("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", "--config.rl.value_clipp=0.1")
    assert "config.rl.value_clipp is no field; did you mean config.rl.value_clip?" in error_of(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=configs/smoke.py", "--config.r1.value_clip=0.1"), "config.r1 is no field; did you mean config.rl?"),
        (("--config=configs/smoke.py", "--config.seed.x=1"), "config.seed is a field, not a section"),
        (
            ("--config.stages=sft", "--config.seed=1", "--config.stages=rl"),
            "--config.stages is given twice: give all",
        ),
        (("--config=configs/smok.py",), "--config is 'configs/smok.py'; there is no such file: choose configs/"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(arguments, message):
    with pytest.raises(ConfigError) as error:
        check_arguments(list(arguments))
    assert message in str(error.value)


def test_of_other_settings_the_last_one_counts():
    assert read_config(["--config=configs/smoke.py", "--config.seed=1", "--config.seed=2"]).seed == 2


@pytest.mark.slow
def test_a_wrong_type_is_refused(tmp_path):
    result = train("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", "--config.rl.states=many")
    assert "config.rl.states" in error_of(result)


@pytest.mark.slow
def test_an_impossible_value_is_refused(tmp_path):
    result = train("--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", "--config.rl.estimator=vtrace")
    assert "config.rl.estimator: advantage estimator is 'vtrace'; choose one of gae" in error_of(result)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    result = train("--config=configs/smoke.py", f"--workdir={tmp_path / 'file' / 'run'}")
    assert "cannot be written" in error_of(result)
    assert "--workdir" in result.stderr


@pytest.mark.slow
def test_a_mistake_does_not_claim_the_workdir(tmp_path):
    result = train(
        "--config=configs/smoke.py", f"--workdir={tmp_path}", f"--config.policy.checkpoint={tmp_path}/none/export"
    )
    assert "config.policy.checkpoint" in error_of(result)
    assert "has no config.json" in result.stderr
    result = train("--config=configs/smoke.py", f"--workdir={tmp_path}", "--config.tasks.train=digts")
    assert "config.tasks.train" in error_of(result) and "'digits'" in result.stderr
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_a_missing_sandbox_is_refused_with_the_command_that_provides_it(tmp_path):
    result = train(
        "--config=configs/smoke.py", f"--workdir={tmp_path}", PATH="/nonexistent", DOCKER_HOST="unix:///nonexistent"
    )
    assert "bubblewrap" in error_of(result)
    assert not (tmp_path / "trajectories").exists()
    assert not (tmp_path / "config.json").exists()
