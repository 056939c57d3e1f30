"""Studies: which runs they take, that these are shared and resumed, and what comes of their results."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from environments.registry import PLUGINS_VARIABLE
from mlagent_jax import study as command
from mlagent_jax.reporting.diversity import edit_kind, measures
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import default_config, freeze
from mlagent_jax.studies import sleeping, timing
from mlagent_jax.studies.plan import DEFAULT, Arm, Sleep, Study, load_study, runs
from mlagent_jax.studies.report import cost_table
from mlagent_jax.studies.results import cost

ROOT = Path(__file__).parents[3]
STUDIES = sorted(path for path in (ROOT / "configs" / "studies").glob("*.py") if path.name != "settings.py")
TIMED = ["asynchronous", "in-turns", "synchronous"]
SKILL = {"sft": 0.2, "default": 0.5, "plain": 0.3}


def edit(cell, model):
    return f"--- train.py\n+++ train.py\n@@ -1 +1 @@\n-model = None\n+model = {model}  # {cell}\n"


def evaluation(path, skill, edits):
    """Two states a task with four actions each, of so many different edits, and two episodes a task."""
    scale = {"m_init": 0.5, "m_best": 1.0, "higher_is_better": True}
    lines = []
    for split in ("held_in", "held_out"):
        for task in (f"{split} a", f"{split} b"):
            for state in range(2):
                for sample in range(4):
                    outcome = {"kind": "scored", "reward": skill + 0.01 * sample, "scale": scale, "action_name": "Edit"}
                    outcome |= {"action_input": {"cell": "model"}, "diff": edit("m", f"Model{sample % edits}()")}
                    step = {"kind": "step", "split": split, "task": task, "state": f"{task}/{state}"}
                    lines.append(step | {"sample": sample, "outcome": outcome})
            for trajectory in range(2):
                episode = {"kind": "episode", "split": split, "task": task, "trajectory": trajectory, "best_of": 2}
                score = {"report_metric": 0.5 + skill, "report_init": 0.5, "higher_is_better": True}
                steps = [{"outcome": {"kind": "scored", "reward": skill}}]
                lines.append(episode | score | {"steps": steps})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def pretend_to_train(argv, environment):
    """In place of a run: the files that its stages leave."""
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in argv if flag.startswith("--"))
    workdir, stages = Path(flags["workdir"]), flags["config.stages"].split(",")
    pretend_to_train.seen.append(workdir)
    arm = workdir.name.removeprefix("start-")
    edits = 1 if arm == "plain" else 4
    for name in flags["config.evaluate.policies"].split(","):
        evaluation(workdir / "evaluation" / f"{name}.jsonl", SKILL["sft" if name == "sft" else arm], edits)
    if "rl" in stages:
        parts = {"seconds_sample": 1.0, "seconds_wait": 2.0, "seconds_update": 3.0}
        rows = [
            {"stage": "rl", "step": i, "seconds": i, **parts} for i in range(1, int(flags["config.rl.iterations"]) + 1)
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "run.json").write_text(json.dumps({"done": stages}))

    return 0


@pytest.fixture
def training(monkeypatch):
    pretend_to_train.seen = []
    monkeypatch.setattr(command, "execute", pretend_to_train)
    return pretend_to_train.seen


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_sets_values_that_are_possible(path, monkeypatch):
    monkeypatch.setenv(PLUGINS_VARIABLE, "")
    found = load_study(path)
    assert found.name == path.stem
    for run in runs([found], Path("runs"), [0], {}):
        config = default_config()
        config.update_from_flattened_dict(
            {name: value for name, value in run.settings.items() if name == "plugins" or "/" not in str(value)}
        )
        freeze(config)


def test_studies_share_the_start_and_the_default_arm_of_a_seed():
    studies = [load_study(path) for path in STUDIES]
    folders = [str(run.workdir) for run in runs(studies, Path("r"), [0, 1], {})]
    assert len(folders) == len(set(folders))
    executed = [folder for folder in folders if folder.rpartition("/")[2] not in TIMED]
    assert executed[:2] == ["r/seed0/start", "r/seed0/default"]
    assert [f for f in folders if f not in executed] == [f"r/seed{s}/{n}" for s in (0, 1) for n in TIMED]
    assert [f for f in folders if "/start" in f] == [f"r/seed{s}/{n}" for s in (0, 1) for n in ("start", "start-plain")]


def test_an_arm_begins_with_the_policy_tasks_and_states_of_its_start():
    studied = Study("s", "?", (Arm("plain", {"rl.value_clip": 0.1}, start={"collect.enriched": False}),))
    by_folder = {str(run.workdir): run.settings for run in runs([studied], Path("r"), [3], {"rl.states": "8"})}
    arm, start = by_folder["r/seed3/plain"], by_folder["r/seed3/start-plain"]
    assert arm["policy.checkpoint"] == Path("r/seed3/start-plain/export")
    assert arm["pool.trajectories"] == Path("r/seed3/start-plain")
    assert (arm["rl.value_clip"], arm["seed"], arm["rl.states"]) == (0.1, 3, "8")
    assert start["collect.enriched"] is False and "rl.value_clip" not in start
    assert by_folder["r/seed3/default"]["policy.checkpoint"] == Path("r/seed3/start/export")


@pytest.mark.slow
def test_a_study_is_run_reported_and_not_run_again(training, tmp_path):
    path = ROOT / "configs" / "studies" / "exploration.py"
    arguments = [str(path), f"--workdir={tmp_path}", "--seeds=0,1", "--config.rl.iterations=6"]
    assert command.main(arguments) == 0
    assert len(training) == 2 * 4
    assert command.main(arguments) == 0
    assert len(training) == 2 * 4

    found = json.loads((tmp_path / "exploration" / "results.json").read_text())
    assert found["seeds"] == [0, 1]
    gains = {name: policy["relative_gain"]["held_out"]["avg"] for name, policy in found["policies"].items()}
    assert gains == pytest.approx({"sft": 0.4, "default": 1.0, "plain: sft": 0.4, "plain": 0.6})
    difference = found["comparisons"]["plain_minus_default"]
    assert difference["step_reward"]["held_in"]["mean"] == pytest.approx(-0.2)
    distinct = found["diversity"]["distinct_edits"]["held_in"]
    assert distinct["policies"]["sft"]["mean"] == 1.0 and distinct["policies"]["plain: sft"]["mean"] == 0.25
    assert distinct["differences"]["plain: sft_minus_sft"]["mean"] == -0.75
    assert found["diversity"]["kind_entropy"]["held_out"]["policies"]["default"]["mean"] == pytest.approx(math.log(4))
    # 6 iterations in place of 24: the point on the way is in proportion, at 6 seconds each.
    assert [(p["iteration"], p["seconds"]) for p in found["curves"]["default"]] == [(0, 0), (3, 18), (6, 36)]
    page = (tmp_path / "exploration" / "index.html").read_text()
    assert "<svg" in page and "plain - default" in page and 'src="http' not in page


def test_runs_share_what_is_compiled_unless_a_place_is_set(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(command, "execute", lambda _, environment: given.append(environment) or 75)
    arguments = [str(STUDIES[0]), f"--workdir={tmp_path}", "--seeds=0"]
    for place in ("", "elsewhere"):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        if place:
            monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", place)
        command.main(arguments)
    assert [each["JAX_COMPILATION_CACHE_DIR"] for each in given] == [str(tmp_path / "xla"), "elsewhere"]
    assert all(each.get("PATH") == os.environ.get("PATH") for each in given)


def test_a_run_that_fails_ends_the_study_with_its_status(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(command, "execute", lambda *_: 75)
    assert command.main([str(STUDIES[0]), f"--workdir={tmp_path}", "--seeds=0"]) == 75
    assert "start again with the same command" in capfd.readouterr().err


def test_a_signal_reaches_the_run_which_ends_by_itself():
    script = """
import os, signal, sys
from mlagent_jax.study import execute
child = "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
child += "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
sys.exit(execute([sys.executable, "-c", child], os.environ))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=50, check=False).returncode == 75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/studies/none.py"], "no file"),
        (["configs/studies/settings.py"], "no get_study"),
        (["configs/studies/refresh.py", "--config.rl.value_clipp=1"], "did you mean"),
        (["configs/studies/refresh.py", "--clip=1"], "unexpected argument"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command.main([*arguments, f"--workdir={tmp_path}"]) == 1
    assert message in capfd.readouterr().err


def test_arms_of_one_name_that_differ_are_refused():
    studies = [Study(name, "?", (Arm("arm", {"rl.value_clip": clip}),)) for name, clip in (("a", 0.1), ("b", 0.3))]
    with pytest.raises(ConfigError, match="redefines the arm 'arm'"):
        list(runs(studies, Path("r"), [0], {}))
    with pytest.raises(ConfigError, match="a unique name"):
        Study("s", "?", (DEFAULT,))


def test_arms_that_execute_and_arms_that_sleep_are_not_compared():
    with pytest.raises(ConfigError, match="arms that sleep"):
        Study("s", "?", (Arm("arm", sleep=Sleep(5.0, 4), points=(5,)),))


BRIEF = """
from mlagent_jax.studies.plan import Arm, Sleep, Study

def get_study():
    asynchronous, synchronous = (
        Arm(name, {"rl.max_staleness": staleness}, points=(6,), sleep=Sleep(0.05, 2))
        for name, staleness in (("asynchronous", 1), ("synchronous", 0))
    )
    return Study("brief", "?", (synchronous,), default=asynchronous)
"""
BRIEF_SETTINGS = """
from mlagent_jax.settings.schema import default_config

def get_config():
    config = default_config()
    config.policy.hidden_size, config.policy.num_layers, config.policy.num_heads = 32, 1, 2
    config.policy.intermediate_size, config.tokenizer.vocab_size = 32, 300
    config.prompt.max_prompt_tokens, config.prompt.max_action_tokens = 256, 8
    config.rl.states, config.rl.samples, config.rl.minibatches, config.sampling.slots = 2, 2, 1, 4
    return config
"""


@pytest.mark.slow
def test_a_study_of_time_says_where_it_went_and_its_runs_are_not_taken_for_real_ones(tmp_path, monkeypatch, capfd):
    (tmp_path / "brief.py").write_text(BRIEF)
    (tmp_path / "settings.py").write_text(BRIEF_SETTINGS)
    started = []

    def execute(argv, environment):
        started.append(argv[2])
        return sleeping.main(argv[2:])

    monkeypatch.setattr(command, "execute", execute)
    arguments = [str(tmp_path / "brief.py"), f"--workdir={tmp_path}", "--seeds=0"]
    assert command.main(arguments) == 0
    assert command.main(arguments) == 0
    assert started == ["mlagent_jax.studies.sleeping"] * 2

    found = json.loads((tmp_path / "brief" / "results.json").read_text())
    arms = {name: by_seed["0"] for name, by_seed in found["timing"].items()}
    assert {name: (each["updates"], each["staleness"]) for name, each in arms.items()} == {
        "asynchronous": (2, 1.0),
        "synchronous": (2, 0.0),
    }
    for each in arms.values():
        assert sum(each[activity] for activity in timing.ACTIVITIES) == pytest.approx(each["seconds"], abs=0.01)
    # Nothing is beside its waiting: two workers, two executions each.
    assert arms["synchronous"]["waiting"] >= 0.1
    assert found["cost"]["synchronous"]["0"]["actions"] == 6 * 4
    page = (tmp_path / "brief" / "index.html").read_text()
    assert "<svg" in page and "which need 0.1 s for a batch" in page and "device waits" in page

    slept = tmp_path / "seed0" / "synchronous"
    config = default_config()
    config.stages, config.policy.checkpoint = ("rl",), str(slept / "policy")
    with pytest.raises(ConfigError, match="only sleeps in their place"):
        Run.open(freeze(config), str(slept))
    (slept / "run.json").write_text(json.dumps(json.loads((slept / "run.json").read_text()) | {"executes": True}))
    settings = [f"--config={tmp_path / 'settings.py'}", f"--workdir={slept}", "--config.stages=rl"]
    capfd.readouterr()
    assert sleeping.main(["sleeping", *settings, "--seconds=0.05", "--workers=2"]) == 1
    assert "a run that executes its actions" in capfd.readouterr().err


def test_the_device_waits_while_it_has_nothing_to_sample():
    def row(step, wait, ahead):
        return {"seconds": 10.0 * step, "seconds_sample": 1.0, "seconds_update": 2.0} | {
            "seconds_wait": wait,
            "seconds_sample_ahead": ahead,
        }

    rows = [row(step, 6.0, 0.0) for step in (1, 2, 3)] + [row(4, 6.0, 0.0), row(5, 6.0, 4.0), row(6, 3.0, 5.0)]
    found = timing.activities([*rows, row(7, 0.0, 0.0)])
    assert [[each[part] for part in ("sampling", "updating", "waiting", "other", "seconds")] for each in found] == [
        [1.0, 2.0, 6.0, 1.0, 10.0],
        [5.0, 2.0, 2.0, 1.0, 10.0],
        [4.0, 2.0, 0.0, 4.0, 10.0],
    ]


def test_the_kind_of_an_edit_is_what_it_changes_and_what_it_calls():
    diff = "--- a\n+++ Foo(\n@@ @@\n-model = Ridge(1)\n+model = make(StandardScaler(), SVC(C=1))\n a = Lasso()\n"
    assert edit_kind({"action_input": {"cell": "model"}, "diff": diff}) == ("model", "SVC", "StandardScaler")


def test_diversity_counts_edits_and_leaves_out_what_we_could_not_execute(tmp_path):
    def line(state, diff, kind="scored"):
        outcome = {"kind": kind, "diff": diff, "action_input": {"cell": "model"}}
        return {"kind": "step", "split": "held_in", "task": "t", "state": state, "outcome": outcome}

    a, b = edit("m", "Ridge()"), edit("m", "Lasso()")
    lines = [
        line("s", a),
        line("s", a),
        line("s", b),
        line("s", ""),
        line("r", a),
        line("r", b, "infrastructure_error"),
    ]
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = measures(path, "held_in")
    assert found["distinct_edits"] == {("t", "s"): 2 / 4, ("t", "r"): 1.0}
    p = np.array([3, 1]) / 4
    assert found["kind_entropy"]["t"] == pytest.approx(-(p * np.log(p)).sum())


def test_a_study_tells_where_a_policy_ended(tmp_path):
    """Entropy and KL over the last quarter of the iterations; what a run does not tell is left out."""
    parts = {"seconds_sample": 1, "seconds_wait": 1, "seconds_update": 1}
    rows = [{"stage": "rl", "step": i, "seconds": i, "kl": 0.1 * i, **parts} for i in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = cost(tmp_path)
    assert taken["kl"] == pytest.approx(0.75) and "entropy" not in taken
    row = cost_table({"cost": {"a": {"0": taken}}}).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["a", "0", "8", "0", "24", "-", "0.750", "-"]
