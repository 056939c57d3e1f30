"""The benchmark table from made-up episodes with figures known beforehand, and the comparison of two runs."""

import csv
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from environments.protocol import OutcomeKind
from mlagent_jax.evaluation.unplayed import Unplayed, write_unplayed
from mlagent_jax.reporting import published, statistics
from mlagent_jax.reporting.benchmark import as_csv, write_benchmark
from mlagent_jax.reporting.summary import write_summary
from mlagent_jax.reporting.table import policy_table
from mlagent_jax.runtime import jsonl

from .conftest import make_outcome

TASK = "spooky-author-identification"


def episode(score, task=TASK, kinds=(OutcomeKind.SCORED, OutcomeKind.INVALID_ACTION), trajectory=0):
    took = {"prompt_tokens": 100, "completion_tokens": 10, "seconds": 1.0, "cost": 0.25}
    steps = [{"prompt": "", "action": "", "outcome": make_outcome(kind).to_dict(), "took": took} for kind in kinds]
    return {
        "kind": "episode", "policy": "x", "split": "held_out", "task": task, "trajectory": trajectory, "best_of": 2,
        "steps": steps, "seconds": 7.0, "report_metric": score, "report_init": 0.5, "higher_is_better": False,
        "metric": "log_loss",
    }  # fmt: skip


def write(workdir, **agents):
    (workdir / "evaluation").mkdir(parents=True)
    for name, episodes in agents.items():
        jsonl.replace(workdir / "evaluation" / f"{name}.jsonl", episodes)
    return workdir


@pytest.fixture
def data(tmp_path):
    lost = episode(0.0, kinds=(OutcomeKind.INFRASTRUCTURE_ERROR,))
    ours = [episode(0.4), episode(0.3), lost, episode(0.5, task="words"), episode(0.25, task="words")]
    return tmp_path, write_benchmark(write(tmp_path, gpt=ours, nothing=[episode(0.5, kinds=())]))


def test_average_best_gain_rates_and_costs_are_those_of_the_trajectories(data):
    _, table = data
    rows = {row["task"]: row for row in table["tasks"]}
    cell = rows[TASK]["cells"]["gpt"]
    assert (cell["avg"], cell["best"], cell["n"]) == (pytest.approx(0.35), pytest.approx(0.3), 2)
    assert cell["gain"] == pytest.approx(0.3)  # lower is better: (0.5 - 0.35) / 0.5
    assert (cell["valid"], cell["tokens"], cell["seconds"], cell["cost"]) == (0.5, 220, 7.0, 0.5)
    assert rows[TASK]["published"]["ML-Agent"] == (0.4415, 0.4078) and not rows["words"]["published"]
    total = table["agents"]["gpt"]
    assert (total["episodes"], total["left_out"], total["cost"]) == (4, 1, 2.0)
    assert total["gain_avg"] == pytest.approx((0.3 + 0.25) / 2) and total["gain_best"] == pytest.approx(0.45)
    assert table["agents"]["nothing"]["gain_avg"] == 0.0


def test_all_four_forms_mark_what_is_published(data):
    workdir, table = data
    assert json.loads((workdir / "report" / "benchmark.json").read_text()) == json.loads(json.dumps(table))
    lines = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert {line["agent"] for line in lines if line["published"] == "yes"} == set(published.COLUMNS)
    for name in ("md", "html"):
        text = (workdir / "report" / f"benchmark.{name}").read_text()
        assert "ML-Agent (published)" in text and "0.4415 / 0.4078" in text and "0.3500" in text


def test_what_could_not_be_played_is_counted_and_is_no_interval(tmp_path):
    write(tmp_path, gpt=[episode(0.4)], rl=[])
    missing = [Unplayed("episodes", "held_out", 1, "takes 405 tokens", TASK)] * 2
    write_unplayed(tmp_path / "evaluation" / "rl.jsonl", missing)
    told = "2 held-out episodes not played: takes 405 tokens"
    table = write_benchmark(tmp_path)
    assert table["agents"]["rl"]["unplayed"] == [told] and "gain_avg" not in table["agents"]["rl"]
    for name in ("md", "html"):
        text = (tmp_path / "report" / f"benchmark.{name}").read_text()
        assert f"rl: {told}" in text and "+0.0%" not in text
    summary = write_summary(tmp_path)
    assert summary["policies"]["rl"]["unplayed"] == [told] and "relative_gain" not in summary["policies"]["rl"]
    assert f"rl: {told}" in policy_table(summary) and "+0.0%" not in policy_table(summary)


def test_medals_of_a_benchmark_with_a_leaderboard_are_counted(tmp_path):
    ours = [episode(0.4) | {"official": {"medal": medal}} for medal in ("gold", "none", "none")]
    table = write_benchmark(write(tmp_path, gpt=ours, nothing=[episode(0.5)]))
    assert table["agents"]["gpt"]["medals"] == {"gold": 1, "silver": 0, "bronze": 0, "none": 2}
    assert "medals" not in table["agents"]["nothing"]
    assert re.search(r"\| +1, 0, 0, 2 \| +- \|", (tmp_path / "report" / "benchmark.md").read_text())


def test_published_accuracies_are_shares_as_ours_are():
    assert len(published.TABLE) == 13 and all(len(row) == 6 for row in published.TABLE.values())
    assert published.TABLE["cifar-10"]["ML-Agent"] == (0.6888, 0.8145)


def test_the_interval_over_trajectories_covers_the_mean_of_these_tasks():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        groups = [(task + rng.normal(size=8)).tolist() for task in range(4)]
        low, high = statistics.stratified_interval(groups, resamples=400, seed=trial)
        hits += low <= 1.5 <= high
    assert 0.90 <= hits / 200 <= 0.99
    assert statistics.stratified_interval([[1.0], [1.0, 2.0]]) is None


def test_compare_runs_tells_a_change_from_noise(tmp_path):
    noise = [0.40, 0.41, 0.39, 0.40]
    first = [episode(s, task) for task in ("a", "b", "c") for s in noise]
    second = [episode(s - shift, task) for task, shift in (("a", 0.2), ("b", 0.001), ("c", -0.2)) for s in noise]
    a, b = write(tmp_path / "a", base=first), write(tmp_path / "b", base=second)
    command = [sys.executable, "tools/compare_runs.py", str(a), str(b)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == f"A: base of {a}"
    found = {line.split("|")[1].strip(): line.split("|")[5].strip() for line in lines if "|" in line}
    assert (found["a"], found["b"], found["c"]) == ("better **", "-", "worse **")
    missing = subprocess.run([*command, "--agent", "sft"], capture_output=True, text=True, check=False)
    assert missing.returncode and "it has base" in missing.stderr
    for run in (a, b):
        jsonl.replace(run / "evaluation" / "rl.jsonl", first)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith(f"A: rl of {a}")
