"""Competitions of MLE-bench and folders of MLAgentBench are tasks: their graders, their lines, answers outside."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
from benchmark_fixtures import write_benchmark, write_mlebench

import environments
from environments import tasks
from environments.actions import Action
from environments.interfaces.command_line import main
from environments.protocol import OutcomeKind
from environments.tasks import InvalidSubmissionError, TaskError
from environments.tasks.task import GraderError


@pytest.fixture
def mlebench(tmp_path, monkeypatch):
    """The folder of the package's prepared data."""
    write_mlebench(tmp_path / "site", tmp_path / "data")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("MLEBENCH_DATA_DIR", str(tmp_path / "data"))
    yield tmp_path / "data"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlebench"]:
        del sys.modules[name]


def build(name, directory):
    directory.mkdir()
    tasks.get(name).build(directory, 0)
    return tasks.prepared.load_grader(directory / "private")


def truth(data):
    return pd.read_csv(data / "rows" / "prepared" / "private" / "answers.csv")


def as_bytes(table):
    return table.to_csv(index=False).encode()


def test_a_competition_is_a_recipe_by_its_id(mlebench):
    spec = tasks.get("mlebench-rows").spec
    assert (spec.name, spec.metric, spec.direction, spec.kind) == ("mlebench-rows", "error-of-rows", "lower", "tabular")
    assert "The competition rows." in spec.description
    records = tasks.get("mlebench-records").spec
    assert (records.direction, records.kind) == ("higher", "image")
    with pytest.raises(TaskError, match="no competition 'row'; did you mean mlebench-rows"):
        tasks.get("mlebench-row")


def test_answers_stay_private_and_the_sample_is_public(mlebench, tmp_path):
    build("mlebench-rows", tmp_path / "built")
    public = {path.name: path.read_bytes() for path in (tmp_path / "built" / "public").iterdir()}
    assert set(public) == {"train.csv", "sample_submission.csv", "description.md"}
    secret = (mlebench / "rows" / "prepared" / "private" / "answers.csv").read_bytes()
    assert (tmp_path / "built" / "private" / "answers.csv").read_bytes() == secret
    assert not any(secret[20:60] in content for content in public.values())


def test_each_half_is_scored_by_their_grader(mlebench, tmp_path):
    grader = build("mlebench-rows", tmp_path / "built")
    answers = truth(mlebench)
    assert grader.in_process.report.sum() == 40
    error = np.where(grader.in_process.report, 0.5, 0.25)
    guess = answers.assign(value=answers["value"] + error).sample(frac=1, random_state=1)
    assert grader.grade(as_bytes(guess), "reward") == pytest.approx(0.25)
    assert grader.grade(as_bytes(guess), "report") == pytest.approx(0.5)
    assert grader.official(as_bytes(guess))["score"] == round(np.sqrt((0.25**2 + 0.5**2) / 2), 5)


@pytest.mark.parametrize(
    ("error", "medal", "above"),
    [(0.1, "gold", True), (0.3, "silver", True), (0.6, "bronze", True), (1.0, "none", True), (1.5, "none", False)],
)
def test_medals_are_by_the_lines_of_the_leaderboard(mlebench, tmp_path, error, medal, above):
    grader = build("mlebench-rows", tmp_path / "built")
    answers = truth(mlebench)
    found = grader.official(as_bytes(answers.assign(value=answers["value"] + error)))
    # 300 teams from 0.1 to 2: the 10th, the 50th and the 100th have the lines.
    board = np.linspace(0.1, 2, 300)
    assert found["gold_threshold"] == pytest.approx(board[9]) and found["silver_threshold"] == pytest.approx(board[49])
    assert found["bronze_threshold"] == pytest.approx(board[99])
    assert (found["medal"], found["above_median"]) == (medal, above)


def test_what_their_grader_refuses_is_invalid_and_says_nothing_of_the_answers(mlebench, tmp_path):
    grader = build("mlebench-rows", tmp_path / "built")
    answers = truth(mlebench)
    for broken, message in (
        (answers[1:], "once for each row"),
        (pd.concat([answers, answers[:1]]), "once for each row"),
        (answers.rename(columns={"key": "name"}), "key must be there"),
        (answers.rename(columns={"value": "price"}), "must have the columns key, value"),
        (answers.assign(value="x"), "cannot score it"),
        (answers.assign(value=np.nan), "not a finite number"),
    ):
        with pytest.raises(InvalidSubmissionError, match=message) as error:
            grader.grade(as_bytes(broken), "reward")
        assert str(answers["value"][0])[:6] not in str(error.value)
    for bomb in (b"," * 1000, b"key,value\n" + b"\n" * 1000):
        with pytest.raises(InvalidSubmissionError, match="many more rows or columns"):
            grader.grade(bomb, "reward")
    with pytest.raises(InvalidSubmissionError, match="not a CSV"):
        grader.grade(b"\xff\xfe\x00", "reward")


def test_answers_without_rows_of_their_own_have_no_halves(mlebench, tmp_path):
    grader = build("mlebench-records", tmp_path / "built")
    submission = b"word\nhidden0\nhidden2\n"
    assert grader.in_process.report is None
    assert grader.grade(submission, "reward") == grader.grade(submission, "report") == pytest.approx(2 / 3)
    assert grader.official(submission)["medal"] == "bronze"


def test_a_competition_is_played_and_reported(mlebench, tmp_path, bubblewrap, capfd):
    task = tasks.prepare("mlebench-rows", tmp_path / "cache" / "tasks", 0, bubblewrap)
    assert task.scale.m_best == pytest.approx(np.linspace(0.1, 2, 300)[9]) and task.has_medals
    action = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": "predict"},
                    'import pandas as pd\npd.read_csv("data/sample_submission.csv").assign(value=0.1)'
                    '.to_csv("submission.csv", index=False)')  # fmt: skip
    with environments.make("mlebench-rows", sandbox=bubblewrap, cache_dir=tmp_path / "cache") as episode:
        episode.reset()
        outcome = episode.step(action.render())[4]["outcome"]
    assert outcome.kind is OutcomeKind.SCORED and outcome.metric_before == pytest.approx(task.scale.m_init)
    guess = tmp_path / "guess.csv"
    truth(mlebench).to_csv(guess, index=False)
    options = ["--cache-dir", str(tmp_path / "cache"), "--json"]
    assert main(["grade", "mlebench-rows", str(guess), *options]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["official"]["medal"] == "gold" and found["reward"] == found["report"] == 0
    guess.write_text("key,value\n")
    assert main(["grade", "mlebench-rows", str(guess), *options]) == 1
    assert "once for each row" in json.loads(capfd.readouterr().out)["invalid"]


def test_what_is_missing_of_mlebench_is_an_error_with_the_command(mlebench, tmp_path, monkeypatch):
    monkeypatch.setenv("MLEBENCH_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(TaskError, match=r"mlebench prepare -c rows.*MLEBENCH_DATA_DIR"):
        build("mlebench-rows", tmp_path / "built")
    board = tmp_path / "site" / "mlebench" / "competitions" / "rows" / "leaderboard.csv"
    board.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(TaskError, match="git lfs pull"):
        tasks.get("mlebench-rows")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlebench", None)
    with pytest.raises(TaskError, match=r"pip install git\+https://github\.com/openai/mle-bench"):
        tasks.get("mlebench-spooky-author-identification")


# ---- MLAgentBench


@pytest.fixture
def benchmark(tmp_path):
    return write_benchmark(tmp_path / "house-price")


def test_a_benchmark_folder_is_a_recipe_by_its_path(benchmark):
    spec = tasks.get(str(benchmark)).spec
    assert (spec.name, spec.metric, spec.direction) == ("house-price", "mae", "lower")
    assert spec.read_only == ("train.csv", "test.csv") and "predict SalePrice" in spec.description


def test_a_benchmark_is_prepared_played_and_graded_by_its_eval(benchmark, tmp_path, bubblewrap):
    with environments.make(str(benchmark), sandbox=bubblewrap, cache_dir=tmp_path / "cache") as episode:
        episode.reset()
        script = (benchmark / "env" / "train.py").read_text()
        better = script.replace('train["SalePrice"].median()', '1000 * test["Area"] + 4500')
        assert better != script
        write = Action("Write File", {"file_name": "train.py", "content": better})
        outcome = episode.step(write.render())[4]["outcome"]
        assert outcome.kind is OutcomeKind.SCORED, outcome
        assert outcome.metric_after < outcome.metric_before
        refused = episode.step(Action("Write File", {"file_name": "train.csv", "content": "x"}).render())[4]["outcome"]
        assert refused.kind is OutcomeKind.INVALID_ACTION
    task = tasks.prepare(str(benchmark), tmp_path / "cache" / "tasks", 0, bubblewrap)
    assert task.scale.m_best == pytest.approx(0.9 * task.scale.m_init) and not task.has_medals
    answer = pd.read_csv(benchmark / "scripts" / "answer.csv")
    assert task.grade(as_bytes(answer)) == task.grade_report(as_bytes(answer)) == 0
    assert task.grade(as_bytes(answer.assign(SalePrice=answer["SalePrice"] + 7))) == pytest.approx(7)
    with pytest.raises(InvalidSubmissionError, match="KeyError"):
        task.grade(b"Id,Price\n1,2\n")


def test_answers_of_a_benchmark_are_private_alone(benchmark, tmp_path):
    (tmp_path / "built").mkdir()
    tasks.get(str(benchmark)).build(tmp_path / "built", 0)
    answer = (benchmark / "scripts" / "answer.csv").read_bytes()
    holds = [path for path in (tmp_path / "built").rglob("*") if path.is_file() and answer in path.read_bytes()]
    assert holds == [tmp_path / "built" / "private" / "scripts" / "answer.csv"]
    assert not (tmp_path / "built" / "private" / "scripts" / "research_problem.txt").exists()


def test_data_of_a_benchmark_are_mounted_and_lines_of_ours_are_taken(benchmark, tmp_path):
    (benchmark / "env" / "data").mkdir()
    (benchmark / "env" / "data" / "batch").write_bytes(b"x")
    (benchmark / "scripts" / "read_only_files.txt").write_text("data/*\n")
    (benchmark / "scripts" / "mlagent.yaml").write_text(
        "metric: {name: error, direction: lower}\nm_best: 12.5\nlimits: {cpu_seconds: 7}\n"
    )
    recipe = tasks.get(str(benchmark))
    assert (recipe.spec.metric, recipe.spec.limits.cpu_seconds, recipe.spec.read_only) == ("error", 7, ())
    (tmp_path / "built").mkdir()
    recipe.build(tmp_path / "built", 0)
    assert (tmp_path / "built" / "public" / "batch").is_file() and not (tmp_path / "built" / "env" / "data").exists()
    assert json.loads((tmp_path / "built" / "private" / "m_best.json").read_text()) == 12.5


def test_a_starting_script_with_gaps_counts_as_stated(benchmark, tmp_path, bubblewrap):
    script = benchmark / "env" / "train.py"
    script.write_text(script.read_text().replace('train["SalePrice"].median()', "prediction"))
    with pytest.raises(TaskError, match=r"starting script ended.*prediction|prediction.*not defined"):
        tasks.prepare(str(benchmark), tmp_path, 0, bubblewrap)
    (benchmark / "scripts" / "mlagent.yaml").write_text("m_init: 40000\n")
    scale = tasks.prepare(str(benchmark), tmp_path, 0, bubblewrap).scale
    assert (scale.m_init, scale.m_best) == (40000, 36000)
    (benchmark / "scripts" / "mlagent.yaml").write_text("m_init: low\n")
    with pytest.raises(TaskError, match="m_init is 'low', expected a number"):
        tasks.get(str(benchmark))


def test_what_is_wrong_with_a_benchmark_is_said(benchmark, tmp_path):
    unknown = benchmark.rename(tmp_path / "my-own")
    with pytest.raises(TaskError, match=r"mlagent\.yaml: nothing says whether a higher score of my-own is better"):
        tasks.get(str(unknown))
    (unknown / "scripts" / "mlagent.yaml").write_text("metrics: accuracy\n")
    with pytest.raises(TaskError, match=r"has 'metrics'; it may have metric, m_init, m_best, limits"):
        tasks.get(str(unknown))
    (unknown / "scripts" / "mlagent.yaml").write_text("metric: {name: accuracy, direction: higher}\n")
    assert tasks.get(str(unknown)).spec.higher_is_better
    (unknown / "scripts" / "prepared").unlink()
    with pytest.raises(TaskError, match=r"is not prepared: run `python -u -m MLAgentBench\.prepare_task my-own`"):
        tasks.get(str(unknown))
    (unknown / "scripts" / "prepared").touch()
    (unknown / "scripts" / "eval.py").write_text("import no_such_package\n")
    (tmp_path / "built").mkdir()
    tasks.get(str(unknown)).build(tmp_path / "built", 0)
    with pytest.raises(GraderError) as error:
        tasks.prepared.load_grader(tmp_path / "built" / "private").grade(b"", "reward")
    assert error.value.host and "no_such_package" in error.value.details
