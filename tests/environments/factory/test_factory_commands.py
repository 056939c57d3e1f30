"""The factory's commands: what they print, write and return."""

import json

import pytest

from environments.interfaces.command_line import main


def test_a_table_becomes_a_task_that_a_suite_checks_and_reports(houses, tmp_path, capfd):
    houses.assign(row=range(300), euro=houses["price"] * 0.9).to_csv(tmp_path / "houses.csv", sep=";", index=False)
    folder = tmp_path / "suite" / "tasks" / "houses"
    data = f"--data={tmp_path / 'houses.csv'}"
    assert main(["new", "houses", data, "--target=price", f"--out={folder}", "--sandbox=auto"]) == 0
    said = capfd.readouterr().out
    for words in ("change with", "numbers the rows", "euro is the target on another scale", "checks passed", "';'"):
        assert words in said
    assert "FAIL" not in said
    entry = {
        "name": "houses", "kind": "tabular", "metric": "rmse", "rows": 300, "columns": 3, "m_init": 2.0, "m_best": 1.0,
        "headroom": 0.5, "noise": 0.0,
    }  # fmt: skip
    (tmp_path / "suite" / "suite.jsonl").write_text(json.dumps(entry) + "\n")
    assert main(["check", str(tmp_path / "suite"), "--all", "--json", "--sandbox=auto"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["task"] == "houses" and json.loads(line)["ok"]
    assert main(["report", str(tmp_path / "suite")]) == 0
    assert "houses" in (tmp_path / "suite" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["new", "houses", "--target=prize"], "did you mean 'price'"),
        (["new", "Houses!", "--target=price"], "no name of a task"),
        (["new", "houses", "--target=price", "--split=group"], "--group"),
        (["new", "houses", "--target=price", "--metric=auc"], "does not fit"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(houses, tmp_path, capfd, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    houses.to_csv("houses.csv", index=False)
    assert main([*arguments, "--data=houses.csv"]) == 2
    assert problem in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["houses.csv"]
