"""A task of one's own: read, found, prepared and graded like an embedded one, with errors that say what to change."""

from __future__ import annotations

import importlib.metadata
import json
import stat

import numpy as np
import pandas as pd
import pytest
import yaml

import environments
from environments import tasks
from environments.actions import Action
from environments.actions.edits import replace_cell
from environments.interfaces.command_line import main
from environments.protocol import OutcomeKind
from environments.tasks import InvalidSubmissionError, TaskError, TaskSpec
from environments.tasks.generated.ideas import ideas_for
from environments.tasks.generated.scripts import Script


def change(folder, **fields):
    """Rewrite task.yaml with other fields; None deletes one."""
    record = yaml.safe_load((folder / "task.yaml").read_text()) | fields
    record = {name: value for name, value in record.items() if value is not None}
    (folder / "task.yaml").write_text(yaml.safe_dump(record, sort_keys=False))


def build(folder, seed=0):
    """The grader and the folders that a recipe writes, without running anything in a sandbox."""
    directory = folder.parent / f"built-{seed}"
    directory.mkdir()
    tasks.get(str(folder)).build(directory, seed)
    return directory, tasks.prepared.load_grader(directory / "private")


def truth(directory):
    return pd.read_csv(directory / "private" / "answers.csv", dtype={"id": str})


def test_a_folder_is_a_recipe_by_its_path(rents, monkeypatch):
    spec = tasks.get(str(rents)).spec
    assert (spec.name, spec.kind, spec.direction, spec.split) == ("rents", "tabular", "lower", "train")
    assert not spec.higher_is_better
    assert spec.limits.cpu_seconds == 10
    assert TaskSpec.from_dict(spec.to_dict()) == spec
    monkeypatch.chdir(rents.parent)
    assert tasks.get("rents").spec == spec == tasks.get("./rents").spec


def test_reading_a_folder_executes_nothing(rents):
    for name in ("prepare.py", "grade.py"):
        (rents / name).write_text("raise SystemExit(1)")
    assert tasks.get(str(rents)).spec.name == "rents"


def test_an_installed_entry_point_is_a_recipe_by_its_name(rents, monkeypatch):
    (rents.parent / "their_tasks.py").write_text(f"RENTS = {str(rents)!r}\nNONE = None\n")
    monkeypatch.syspath_prepend(rents.parent)
    points = [importlib.metadata.EntryPoint(name, f"their_tasks:{name.upper()}", "mlagent_jax.tasks")
              for name in ("rents", "none")]  # fmt: skip
    monkeypatch.setattr(
        tasks.folder.importlib.metadata, "entry_points", lambda group: points if group == "mlagent_jax.tasks" else []
    )
    assert tasks.get("rents").spec.name == "rents"
    with pytest.raises(TaskError, match=r"their_tasks:NONE.*gives no path"):
        tasks.get("none")
    with pytest.raises(TaskError, match="did you mean 'rents'"):
        tasks.get("rent")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../rents"}, r"name is '../rents'"),
        ({"name": "a@b"}, "name is 'a@b'"),
        ({"name": "wine"}, "which an embedded task has"),
        ({"kind": "sound"}, "kind is 'sound', expected one of tabular, image"),
        ({"metric": {"name": "error"}}, "metric.direction is None, expected one of higher, lower"),
        ({"metric": None}, "metric is 'missing'"),
        ({"submision": {}}, "no field 'submision'; did you mean submission"),
        ({"submission": {"columns": {"rent": "float"}}}, "submission.columns.rent is 'float', expected one of number"),
        ({"submission": {"columns": {}}}, "submission.columns is {}"),
        ({"entry": "../train.py"}, "entry is '../train.py', expected a path inside env/"),
        ({"limits": {"cpu_seconds": "long"}}, "limits.cpu_seconds is 'long'"),
        ({"limits": {"seconds": 1}}, "limits has no field 'seconds'; did you mean .*_seconds"),
        ({"archive": {"kagle": "titanic"}}, "archive has no field 'kagle'; did you mean kaggle"),
        ({"archive": {}}, "archive is {}, expected one of kaggle, url, tfds with its name"),
        ({"archive": {"url": 3}}, "archive.url is 3, expected a text"),
        ({"gpus": -1}, "gpus is -1, expected a number from 0"),
        ({"ideas": "more trees"}, "ideas is 'more trees', expected a list"),
        (
            {"ideas": [{"text": "a", "cell": "trees", "code": "x = 1"}]},
            r"ideas\[0\].cell is 'trees', expected one of data",
        ),
        ({"ideas": [{"text": "a", "cell": "model", "code": "x ="}]}, r"ideas\[0\].code is 'x =', expected Python"),
        ({"ideas": [{"text": "a; b", "cell": "model", "code": "x"}]}, r"ideas\[0\].text is 'a; b'"),
        ({"ideas": [{"text": "a", "cell": "model", "kode": "x"}]}, "did you mean code"),
        ({"m_best": 0.1}, "either reference.py or m_best"),
        ({"entry": "main.py"}, "has no env/main.py"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(rents, fields, message):
    change(rents, **fields)
    with pytest.raises(TaskError, match=message):
        tasks.get(str(rents))


def test_all_that_is_wrong_is_named_at_once_and_no_part_of_it_twice(rents):
    wrong = {"kind": "sound", "metric": None, "gpus": -1, "limits": {"seconds": 1, "cpu_seconds": "long"}}
    change(rents, **wrong, ideas=[{"text": "a; b", "cell": "trees", "code": "x ="}, 3])
    (rents / "grade.py").unlink()
    with pytest.raises(TaskError) as raised:
        tasks.get(str(rents))
    named = ["metric is", "kind is", "limits has no field 'seconds'", "limits.cpu_seconds", "gpus", "has no grade.py"]
    named += ["ideas[0].text", "ideas[0].code", "ideas[0].cell", "ideas[1] is 3"]
    assert [text for text, name in zip(raised.value.mistakes, named, strict=True) if name not in text] == []
    assert str(raised.value).splitlines() == list(raised.value.mistakes)


def test_a_missing_file_is_an_error_that_names_it(rents):
    (rents / "grade.py").unlink()
    with pytest.raises(TaskError, match=r"has no grade\.py"):
        tasks.get(str(rents))
    with pytest.raises(TaskError, match=r"nowhere/task\.yaml cannot be read"):
        tasks.get(str(rents / "nowhere"))


def test_raw_data_are_in_the_folder_or_where_archives_lie(rents, monkeypatch, tmp_path):
    monkeypatch.setenv("MLAGENT_DATA_DIR", str(tmp_path / "archives"))
    assert tasks.get(str(rents)).raw == rents / "raw"
    change(rents, archive={"url": "https://example.org/rents.zip"})
    with pytest.raises(
        TaskError, match=r"archives/rents/rents\.zip is not there: `curl .* https://example\.org/rents\.zip`"
    ):
        build(rents)
    folder = tmp_path / "archives" / "rents"
    folder.mkdir(parents=True)
    (folder / "rents.zip").write_bytes(b"")
    (rents / "prepare.py").write_text(
        "from environments.tasks.folders import archives\n"
        "def prepare(raw, public, private, seed):\n"
        "    with archives.open_archive(raw, 'rents.zip'): pass\n"
    )
    with pytest.raises(TaskError, match=r"rents\.zip cannot be read .*: it was cut off, fetch it again.*`curl"):
        build(rents, seed=1)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("def prepare(raw, public, private, seed):\n    1 / 0\n", r"prepare\.py, line 2 raised ZeroDivisionError"),
        ("def prepare(raw, public, private, seed): ...\n", "wrote nothing into its folder `public`"),
        ("def prepare(raw, public, private, seed):\n    (public / 'x').touch()\n", r"no answers\.csv"),
        ("prepared = 1\n", "no function 'prepare'"),
        ("def prepare(:\n", "cannot be read"),
    ],
)
def test_a_prepare_that_fails_is_an_error_that_says_where(rents, script, message):
    (rents / "prepare.py").write_text(script)
    with pytest.raises(TaskError, match=message):
        build(rents)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("key,rent\n1,2\n", "no column 'id'"),
        ("id,rent\n1,2\n1,3\n", "different in every row"),
        ("id,rent,half\n1,2,reward\n2,3,public\n", "must hold `reward` and `report`"),
        ("id,rent\n1,2\n", "each half needs some"),
    ],
)
def test_answers_that_cannot_be_used_are_an_error(rents, rows, message):
    text = (rents / "prepare.py").read_text()
    (rents / "prepare.py").write_text(f"{text}    (private / 'answers.csv').write_text({rows!r})\n")
    with pytest.raises(TaskError, match=message):
        build(rents)


def test_halves_are_drawn_by_the_seed_or_taken_from_their_column(rents):
    directory, grader = build(rents)
    assert stat.S_IMODE((directory / "private").stat().st_mode) == 0o700
    assert grader.report.sum() == 300 and len(grader.report) == 600
    assert not np.array_equal(grader.report, build(rents, seed=1)[1].report)
    text = (rents / "prepare.py").read_text()
    text = text.replace(
        'test[["id", "rent"]]', 'test.assign(half=["reward", "report", "report"] * 200)[["id", "rent", "half"]]'
    )
    (rents / "prepare.py").write_text(text)
    _, grader = build(rents, seed=2)
    assert grader.report.tolist() == [False, True, True] * 200
    assert "half" not in grader.answers


def test_each_half_is_graded_alone_and_by_id(rents):
    directory, grader = build(rents)
    answers = truth(directory)
    guess = answers.assign(rent=np.where(grader.report, 2.0, 1.0) * answers["rent"])[["id", "rent"]]
    shuffled = guess.sample(frac=1.0, random_state=0).to_csv(index=False).encode()
    assert grader.grade(shuffled, "reward") == pytest.approx(0.0)
    assert grader.grade(shuffled, "report") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change_row", "message"),
    [
        ("{id},-5", "a rent is negative"),  # By grade.py itself.
        ("{id},nan", "not a finite number"),
        ("{id},1e13", "not a finite number"),
        ("{id},12,1", "3 cells"),
        ('{id},"12', "not a CSV file"),
        ("x,12", "unknown id 'x'"),
    ],
)
def test_an_invalid_submission_says_why_and_nothing_of_the_answers(rents, change_row, message):
    directory, grader = build(rents)
    answers = truth(directory)
    lines = ["id,rent", *(f"{name},1" for name in answers["id"])]
    place = 1 + int(np.flatnonzero(~grader.report)[0])
    lines[place] = change_row.format(id=answers["id"][place - 1])
    with pytest.raises(InvalidSubmissionError, match=message) as error:
        grader.grade("\n".join(lines).encode(), "reward")
    assert not any(str(rent) in str(error.value) for rent in answers["rent"])


@pytest.mark.parametrize(
    ("body", "message"),
    [("return submission['price']", r"grade\.py, line 2 raised KeyError"), ("return 'good'", "'good', not a number")],
)
def test_a_grade_that_fails_is_an_error_of_the_task(rents, body, message):
    (rents / "grade.py").write_text(f"def grade(submission, answers):\n    {body}\n")
    directory, grader = build(rents)
    guess = truth(directory)[["id", "rent"]].to_csv(index=False).encode()
    with pytest.raises(TaskError, match=message):
        grader.grade(guess, "reward")


def test_texts_and_integers_are_columns_too(rents):
    change(rents, submission={"columns": {"rent": "integer", "note": "text"}, "id": "id"})
    (rents / "grade.py").write_text(
        "def grade(submission, answers):\n    return (submission['note'] == 'a, b').mean() + submission['rent'].sum()\n"
    )
    directory, grader = build(rents)
    rows = "".join(f'{name},0,"a, b"\n' for name in truth(directory)["id"])
    assert grader.grade(f"id,rent,note\n{rows}".encode(), "reward") == 1.0
    with pytest.raises(InvalidSubmissionError, match="not an integer"):
        grader.grade(f"id,rent,note\n{rows}".replace(",0,", ",0.5,").encode(), "reward")


def test_ideas_of_its_own_are_offered_where_they_change_a_cell(rents):
    spec, script = tasks.get(str(rents)).spec, (rents / "env" / "train.py").read_text()
    first, *others = ideas_for(spec, script)
    assert [first.text, *(idea.text for idea in others)] == [idea.text for idea in spec.ideas]
    assert (first.cell, len(others)) == ("data", 2)
    assert list(ideas_for(spec, replace_cell(script, "data", first.code))) == others
    assert ideas_for(spec, "print('a script without cells')") == ()
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_what_is_not_set_is_in_no_digest(rents):
    change(rents, ideas=None)
    assert not {"ideas", "gpus"} & tasks.get(str(rents)).spec.to_dict().keys()
    assert not {"ideas", "gpus", "direction"} & tasks.get("wine").spec.to_dict().keys()
    change(rents, gpus=2)
    assert tasks.get(str(rents)).spec.to_dict()["gpus"] == 2


def test_the_librarys_ideas_need_our_cells_and_for_a_metric_of_ones_own_nothing_else(rents):
    change(rents, ideas=None)
    spec = tasks.get(str(rents)).spec
    assert ideas_for(spec, (rents / "env" / "train.py").read_text()) == ()
    found = ideas_for(spec, Script("Ridge()").text())
    assert found and all(idea.classification is None for idea in found)


def test_a_folder_is_prepared_and_played_like_an_embedded_task(rents, tmp_path, bubblewrap, capsys):
    assert main(["show", str(rents)]) == 0 and "monthly rent" in capsys.readouterr().out
    edit = Action(
        "Edit Script (Cell)", {"script_name": "train.py", "cell": "data"},
        'import pandas as pd\ntrain, test = pd.read_csv("data/train.csv"), pd.read_csv("data/test.csv")\n'
        'columns = ["area", "rooms", "floor"]',
    )  # fmt: skip
    with environments.make(str(rents), sandbox=bubblewrap, cache_dir=tmp_path / "cache") as episode:
        assert "monthly rent" in episode.reset()[0]
        _, reward, _, _, info = episode.step(edit.render())
        assert info["outcome"].kind is OutcomeKind.SCORED
        assert info["outcome"].metric_after < info["outcome"].metric_before
        assert reward > 0


def test_a_stated_m_best_takes_the_place_of_a_reference(rents, tmp_path, bubblewrap):
    (rents / "reference.py").unlink()
    change(rents, m_best=0.1)
    task = tasks.prepare(str(rents), tmp_path / "prepared", 0, bubblewrap)
    assert task.scale.m_best == task.report_scale.m_best == 0.1
    change(rents, m_best=0.9)
    with pytest.raises(TaskError, match="no headroom"):
        tasks.prepare(str(rents), tmp_path / "prepared", 0, bubblewrap)
