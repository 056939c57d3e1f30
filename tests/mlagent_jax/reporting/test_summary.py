"""The figures of a run, from its records."""

import json
import types

import numpy as np
import pytest

from environments.protocol import OutcomeKind
from mlagent_jax import report
from mlagent_jax.reporting import summary, table
from mlagent_jax.runtime import jsonl


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_summary_holds_what_is_promised_and_is_on_disk(finished_run):
    workdir = finished_run()
    found = summary.write_summary(workdir)
    assert json.loads((workdir / "report" / "summary.json").read_text()) == found
    for policy in ("base", "sft", "rl"):
        fields = found["policies"][policy]
        for scope in (fields, fields["tasks"]["wine"]):
            assert 0 <= scope["valid_action_rate"] <= 1
            assert {"mean", "ci95", "n"} <= set(scope["step_reward"]["held_in"])
            assert {"avg", "best", "ci95", "n"} <= set(scope["relative_gain"]["held_in"])
        assert set(fields["step_reward"]) == set(fields["relative_gain"]) == {"held_in", "held_out"}
        assert set(fields["tasks"]["wine"]["step_reward"]) == {"held_in"}
    assert {"mean", "ci95"} <= set(found["comparisons"]["rl_minus_sft"]["step_reward"]["held_out"])
    assert set(found["run"]) == {"seconds", "executions", "peak_memory_gb", "seed", "sandbox", "versions"}


def test_figures_are_those_of_plain_loops_over_the_records(finished_run):
    workdir = finished_run()
    found = summary.summarize(workdir)
    records = {policy: read(workdir / "evaluation" / f"{policy}.jsonl") for policy in ("sft", "rl")}
    rewards = {}
    for policy, lines in records.items():
        steps = [r for r in lines if r["kind"] == "step"]
        actions = [r["outcome"]["kind"] for r in steps]
        actions += [s["outcome"]["kind"] for r in lines if r["kind"] == "episode" for s in r["steps"]]
        rate = np.mean([kind != "invalid_action" for kind in actions])
        assert found["policies"][policy]["valid_action_rate"] == pytest.approx(rate)
        for r in steps:
            if r["split"] == "held_out":
                rewards.setdefault(policy, {}).setdefault((r["task"], r["state"]), []).append(r["outcome"]["reward"])
        held_out = found["policies"][policy]["step_reward"]["held_out"]
        assert held_out["mean"] == pytest.approx(np.mean([x for group in rewards[policy].values() for x in group]))
        assert held_out["ci95"][0] < held_out["mean"] < held_out["ci95"][1]
        gains = {}
        for r in lines:
            if r["kind"] == "episode" and r["split"] == "held_in":
                gains.setdefault(r["task"], []).append((r["report_metric"] - 0.7) / 0.7)
        gain = found["policies"][policy]["relative_gain"]["held_in"]
        assert gain["avg"] == pytest.approx(np.mean([np.mean(group) for group in gains.values()]))
        assert gain["best"] == pytest.approx(np.mean([max(group) for group in gains.values()]))
    difference = np.mean([np.mean(rewards["rl"][s]) - np.mean(rewards["sft"][s]) for s in rewards["sft"]])
    comparison = found["comparisons"]["rl_minus_sft"]["step_reward"]["held_out"]
    assert comparison["mean"] == pytest.approx(difference)
    assert comparison["n"] == len(rewards["sft"])


def test_what_was_not_evaluated_is_absent(finished_run):
    workdir = finished_run(policies=("sft",))
    found = summary.write_summary(workdir)
    assert set(found["policies"]) == {"sft"}
    assert found["comparisons"] == {}


def test_a_run_that_has_only_begun_has_an_empty_summary(tmp_path):
    assert summary.write_summary(tmp_path) == {"policies": {}, "comparisons": {}, "run": {}}


def test_infrastructure_errors_are_counted_and_otherwise_left_out(finished_run, outcome):
    workdir = finished_run(policies=("sft",))
    before = summary.summarize(workdir)["policies"]["sft"]
    path = workdir / "evaluation" / "sft.jsonl"
    failed = outcome(OutcomeKind.INFRASTRUCTURE_ERROR).to_dict()
    step = {"kind": "step", "policy": "sft", "split": "held_in", "task": "wine", "state": "s", "outcome": failed}
    episode = next(record for record in read(path) if record["kind"] == "episode" and record["task"] == "wine")
    robbed = {**episode, "steps": [{"prompt": "", "action": "", "outcome": failed}], "report_metric": 99.0}
    with jsonl.Appender(path) as file:
        file.append(step, robbed)
    after = summary.summarize(workdir)["policies"]["sft"]
    assert after["infrastructure_errors"] == {"steps": 1, "episodes": 1}
    assert before["infrastructure_errors"] == {"steps": 0, "episodes": 0}
    for field in ("valid_action_rate", "step_reward", "relative_gain"):
        assert after[field] == before[field]


def test_a_task_whose_start_scores_zero_is_left_out_of_gains_and_counted(finished_run):
    workdir = finished_run(policies=("sft",), episodes=2)
    path = workdir / "evaluation" / "sft.jsonl"
    lines = [{**r, "report_init": 0.0} if r["task"] == "wine" and r["kind"] == "episode" else r for r in read(path)]
    jsonl.replace(path, lines)
    gain = summary.summarize(workdir)["policies"]["sft"]["relative_gain"]["held_in"]
    assert (gain["undefined"], gain["tasks"], gain["n"]) == (2, 3, 6)


def test_pooling_seeds_narrows_the_interval_and_keeps_each_run(finished_run):
    workdirs = [finished_run(f"seed{seed}", seed=seed) for seed in range(3)]
    single = summary.summarize(workdirs[0])
    pooled = summary.pool_summaries(workdirs)
    assert [run["run"]["seed"] for run in pooled["runs"]] == [0, 1, 2]
    assert pooled["runs"][0]["comparisons"] == single["comparisons"]
    ours = pooled["policies"]["rl"]["step_reward"]["held_in"]
    theirs = [run["policies"]["rl"]["step_reward"]["held_in"] for run in pooled["runs"]]
    assert ours["mean"] == pytest.approx(np.mean([fields["mean"] for fields in theirs]))
    assert ours["n"] == sum(fields["n"] for fields in theirs)
    assert ours["states"] == theirs[0]["states"]  # The same states in every run are one cluster each.
    width = [high - low for low, high in (ours["ci95"], theirs[0]["ci95"])]
    assert width[0] < width[1]
    best = [run["policies"]["rl"]["relative_gain"]["held_in"]["best"] for run in pooled["runs"]]
    assert pooled["policies"]["rl"]["relative_gain"]["held_in"]["best"] == pytest.approx(np.mean(best))


def test_a_run_pooled_with_itself_is_refused(finished_run):
    workdir = finished_run()
    with pytest.raises(ValueError, match="each once"):
        summary.pool_summaries([workdir, workdir])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "train"}, "record 1: split is 'train'"),
        ({"kind": "x"}, "kind is 'x'"),
        ({"outcome": {}}, "'kind' is missing"),
    ],
)
def test_a_broken_record_is_named(finished_run, change, message):
    path = finished_run(policies=("sft",)) / "evaluation" / "sft.jsonl"
    jsonl.replace(path, [{**read(path)[0], **change}])
    with pytest.raises(jsonl.RecordError, match=message):
        summary.summarize(path.parent.parent)


def test_a_missing_workdir_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such"):
        summary.summarize(tmp_path / "no-such")


def test_tables_are_markdown_with_a_column_for_each_policy_and_difference(finished_run):
    found = summary.summarize(finished_run())
    lines = table.policy_table(found).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "",
        "base",
        "sft",
        "rl",
        "rl - sft",
        "sft - base",
    ]
    assert len({line.count("|") for line in lines}) == 1
    reward = found["policies"]["rl"]["step_reward"]["held_out"]["mean"]
    row = next(line for line in lines if "step reward, held-out" in line)
    assert f"{reward:.3f} [" in row
    tasks = table.task_table(found)
    assert tasks.count("| wine ") == 3


def test_tables_of_a_run_that_has_only_begun_are_headers(tmp_path):
    found = summary.summarize(tmp_path)
    assert len(table.policy_table(found).splitlines()) == 3
    assert len(table.task_table(found).splitlines()) == 2


def test_what_records_hold_reaches_no_terminal_as_codes(finished_run, monkeypatch, capsys):
    workdir = finished_run(policies=("sft",))
    path = workdir / "evaluation" / "sft.jsonl"
    jsonl.replace(path, [{**record, "task": record["task"] + "\x1b]0;OWNED\x07"} for record in read(path)])
    for flag in ("_SERVE", "_JSON", "_OUTPUT"):
        monkeypatch.setattr(report, flag, types.SimpleNamespace(value=None))
    report.main(["report", str(workdir)])
    assert "OWNED" in (shown := capsys.readouterr().out) and "\x1b" not in shown


def test_an_interval_of_few_states_stays_within_what_a_reward_can_be(tmp_path, outcome):
    (tmp_path / "evaluation").mkdir()
    best, worst = outcome(OutcomeKind.SCORED, metric=5.0), outcome(OutcomeKind.INVALID_ACTION)
    steps = [
        {"kind": "step", "policy": "rl", "split": "held_in", "task": "wine", "state": str(i), "outcome": each.to_dict()}
        for i, each in enumerate((best, worst))
    ]
    jsonl.replace(tmp_path / "evaluation" / "rl.jsonl", steps)
    open_ends = summary.summarize(tmp_path)["policies"]["rl"]["step_reward"]["held_in"]["ci95"]
    assert open_ends[0] < 0 and open_ends[1] > 1
    (tmp_path / "run.json").write_text(json.dumps({"config": {"evaluate": {"reward": "improvement:least=0.02"}}}))
    figures = summary.summarize(tmp_path)["policies"]["rl"]
    for scope in (figures, figures["tasks"]["wine"]):
        assert scope["step_reward"]["held_in"]["ci95"] == [0, 1]
