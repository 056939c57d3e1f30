"""The entry refuses what cannot work, before any work is done, and says what to do."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import pytest

from environments.queue.base import QueueError
from mlagent_jax.runs.check import check
from mlagent_jax.runs.workdir import check_binding, write_config
from mlagent_jax.runtime.endings import ending_of, is_expected
from mlagent_jax.runtime.errors import ConfigError, DivergedError
from mlagent_jax.runtime.files import sole_writer
from mlagent_jax.runtime.interruption import Stopped
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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--rl.value_clip=1", "--rl.value_clip is no flag; settings begin with --config: --config.rl.value_clip=VALUE"),
        ("--rl.clip=1", "config.rl.clip has moved: set config.rl.loss=ppo_clip:low=VALUE"),
        ("--learning_rate=1", "did you mean config.sft.learning_rate or config.rl.learning_rate?"),
        ("--wrkdir=x", "Unknown command line flag 'wrkdir'"),
        ("--config=pyproject.toml", "--config: "),
    ],
)
def test_a_setting_without_its_prefix_gets_a_hint(argument, message):
    with pytest.raises(ConfigError) as error:
        read_config(["--config=configs/smoke.py", argument])
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("form", ["--config.tasks.train={}", "--config.tasks.train=('{}',)"])
def test_names_in_lists_may_be_folders_and_have_hyphens(form):
    names = "churn,./my-task,detecting-insults-in-social-commentary"
    assert read_config(["--config=configs/smoke.py", form.format(names)]).tasks.train == tuple(names.split(","))


def test_a_run_s_own_settings_are_a_config(tmp_path):
    config = read_config(["--config=configs/smoke.py", "--config.seed=3"])
    write_config(tmp_path, config)
    assert read_config([f"--config={tmp_path}/config.json"]) == config
    again = read_config([f"--config={tmp_path}", "--config.seed=4", "--config.stages=sft,rl"])
    assert again == dataclasses.replace(config, seed=4, stages=("sft", "rl"))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no settings"):
        read_config([f"--config={tmp_path}/config.json"])


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (ConfigError("config.x is 1"), "settings", 2),
        (DivergedError("iteration 3: kl 9"), "diverged", 3),
        (QueueError("no worker"), "queue", 4),
        (OSError(errno.ENOSPC, "No space left on device"), "disk", 5),
        (ModuleNotFoundError("No module named 'jax'", name="jax"), "settings", 2),
        (Stopped(signal.SIGTERM), "preempted", 75),
        (TypeError("a defect"), "failed", 1),
    ],
)
def test_every_end_has_a_reason_in_one_line_and_a_status(error, kind, status):
    ending = ending_of(error)
    assert (ending.kind, ending.status) == (kind, status) and len(ending.reason.splitlines()) == 1
    assert is_expected(error) == (kind != "failed")


def test_a_full_disk_is_told_whatever_library_meets_it():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot write the checkpoint") from error
    except RuntimeError as wrapped:
        assert ending_of(wrapped).kind == "disk" and "free space" in ending_of(wrapped).reason


def test_a_check_looks_at_everything_and_writes_nothing(tmp_path):
    workdir = tmp_path / "run"
    lines = "\n".join(check(read_config(["--config=configs/smoke.py"]), str(workdir)))
    assert "4 to train on, 3 held out" in lines and "sandbox: " in lines and f"{workdir}, new" in lines
    wrong = read_config(["--config=configs/smoke.py", "--config.tasks.held_out=digits,nothing-of-this-name"])
    with pytest.raises(ConfigError, match=r"config\.tasks\.held_out"):
        list(check(wrong, str(workdir)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        list(check(read_config(["--config=configs/smoke.py"]), str(tmp_path / "file" / "run")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_workdir_belongs_to_a_config_only_when_a_stage_made_something(tmp_path):
    config = read_config(["--config=configs/smoke.py"])
    write_config(tmp_path, config)
    other = dataclasses.replace(config, seed=5)
    check_binding(tmp_path, other)
    (tmp_path / "trajectories").mkdir()
    with pytest.raises(ConfigError, match="belongs to a run of another config"):
        check_binding(tmp_path, other)


def test_a_lock_is_gone_when_its_holder_is(tmp_path):
    with sole_writer(tmp_path, "wait"), pytest.raises(ConfigError, match="another process writes"):
        sole_writer(tmp_path, "wait").__enter__()
    assert not list(tmp_path.iterdir())


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
