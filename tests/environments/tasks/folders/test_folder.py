"""A task of one's own: read, found, prepared and graded like an embedded one, with errors that say what to change."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import stat

import numpy as np
import pandas as pd
import pytest
import yaml

import environments
from environments import tasks
from environments.actions import Action
from environments.actions.edits import replace_cell
from environments.files.hostile import remove
from environments.interfaces.command_line import main
from environments.protocol import OutcomeKind
from environments.sandbox.base import SandboxError
from environments.tasks import InvalidSubmissionError, TaskError, TaskSpec
from environments.tasks.generated.ideas import ideas_for
from environments.tasks.generated.scripts import Script
from environments.tasks.grading.isolated import CONTROL
from environments.tasks.task import GraderError


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
        ({"m_best": float("nan")}, r"m_best is nan, expected a number up to 1e\+100"),
        ({"limits": {"processes": 2.5}}, "limits.processes is 2.5, expected a whole number from 1 to 32768"),
        ({"limits": {"disk_mb": 10.5}}, "limits.disk_mb is 10.5, expected a whole number"),
        ({"limits": {"cpu_seconds": float("inf")}}, "limits.cpu_seconds is inf, expected a number from 0.1 to 604800"),
        ({"limits": {"file_mb": 1e30}}, r"limits.file_mb is 1e\+30, expected a whole number from 1 to"),
        ({"gpus": 10**6}, "gpus is 1000000, expected a number from 0 to 64"),
        ({"name": False}, "name is False, expected .* small letters.*write it in quotes"),
        ({"metric": {"name": "a\nb", "direction": "lower"}}, "metric.name is .*expected up to 40 letters in one line"),
        ({"submission": {"columns": {"id": "number"}}}, "the column 'id' is that of the ids"),
        ({"answers": {"half": "text"}}, "the column 'half' is that of the halves"),
        ({"entry": "main.py"}, "has no env/main.py"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(rents, fields, message):
    change(rents, **fields)
    with pytest.raises(TaskError, match=message):
        tasks.get(str(rents))


def test_names_are_as_they_are_written(rents):
    columns = "{yes: probability, no: probability, 0: number, 1.10: number, null: text}"
    text = (rents / "task.yaml").read_text().replace("{rent: number}", columns)
    text = text.replace("mean absolute percentage error", "F1 (macro)")
    (rents / "task.yaml").write_text(text)
    recipe = tasks.get(str(rents))
    assert list(recipe.form.columns) == ["yes", "no", "0", "1.10", "null"] and recipe.spec.metric == "F1 (macro)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: [*a, *a]\n", r"aliases .* are not read"),
        ("[" * 100_000, "more than 20 deep in each other"),
        ("{a: " * 100_000, "more than 20 deep in each other"),
        ("name: a\nname: b\n", "'name' is there twice"),
        ("[a, b]: 1\n", "a key must be a text"),
        ("made: 2024-13-01\n", "is not YAML"),
        ("x" * (2 << 20), "1048576 are read"),
        ("- name\n", "the file is .*expected fields with values"),
    ],
)
def test_a_task_yaml_that_is_a_bomb_is_refused_in_a_line(rents, text, message):
    (rents / "task.yaml").write_text(text)
    with pytest.raises(TaskError, match=message) as error:
        tasks.get(str(rents))
    assert len(str(error.value)) < 2000


def test_what_is_no_file_is_never_waited_for(rents):
    for name in ("task.yaml", "description.md", "env/train.py"):
        kept = (rents / name).read_bytes()
        (rents / name).unlink()
        os.mkfifo(rents / name)
        with pytest.raises(TaskError, match=name):
            tasks.get(str(rents))
        (rents / name).unlink()
        (rents / name).write_bytes(kept)


def test_an_env_that_no_workspace_can_hold_is_refused(rents):
    env = rents / "env"
    for make, message in (
        (lambda path: os.mkfifo(path), "'x': neither file, folder nor link"),
        (lambda path: path.symlink_to("nowhere"), "'x': a link that leads nowhere"),
        (lambda path: path.symlink_to("/etc/passwd"), "'x': a symbolic link that leads out"),
        (lambda path: (path / "a/" / "/".join("b" * 60)).mkdir(parents=True), "more than 32 folders deep"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40), "too many bytes"),
    ):
        make(env / "x")
        with pytest.raises(TaskError, match=message):
            tasks.get(str(rents))
        remove(env / "x")
    (env / "x").mkdir()
    (env / "link").symlink_to("x")
    (env / "x" / "self").symlink_to(".")
    built = rents.parent / "built"
    built.mkdir()
    tasks.get(str(rents)).build(built, 0)
    assert (built / "env" / "link").is_symlink()


def test_what_the_scripts_of_a_task_print_is_in_no_answer(rents, tmp_path, bubblewrap, capfd):
    for name, function in (("prepare", "prepare(raw, public, private, seed)"), ("grade", "grade(submission, answers)")):
        text = (rents / f"{name}.py").read_text()
        text = text.replace(
            f"def {function}:\n", f"def {function}:\n    import os; print('LABEL'); os.system('echo LABEL')\n"
        )
        (rents / f"{name}.py").write_text(text)
    actions, guess = tmp_path / "actions.jsonl", tmp_path / "guess.csv"
    actions.write_text(json.dumps({"action": Action("Execute Script", {"script_name": "train.py"}).render()}))
    guess.write_text("id,rent\n")
    place = ["--cache-dir", str(tmp_path / "cache"), "--json"]
    for arguments in (
        ["run", str(rents), "--actions", str(actions), *place],
        ["grade", str(rents), str(guess), *place],
    ):
        main(arguments)
        captured = capfd.readouterr()
        assert json.loads(captured.out) and "LABEL" not in captured.out


def test_a_grader_that_broke_since_is_no_fault_of_a_script_and_tells_nobody_but_the_operator(
    rents, tmp_path, bubblewrap, caplog
):
    task = tasks.prepare(str(rents), tmp_path / "cache" / "tasks", 0, bubblewrap)
    (task.folder / "private" / "grade.py").write_text(
        "def grade(submission, answers):\n    raise RuntimeError(f'LABELS {list(answers.rent)[:3]}')\n"
    )
    write = Action("Write File", {"file_name": "train.py", "content": f"{task.script}\nprint('better')\n"})
    with environments.make(str(rents), sandbox=bubblewrap, cache_dir=tmp_path / "cache") as episode:
        episode.reset()
        for _ in range(2):  # Nothing of the first is cached.
            with pytest.raises(SandboxError, match=r"grade\.py, line 2") as error:
                episode.step(write.render())
            assert "LABELS" not in str(error.value)
        shutil.copy(rents / "grade.py", task.folder / "private" / "grade.py")
    assert caplog.text.count("RuntimeError: LABELS") == 2
    with environments.make(str(rents), sandbox=bubblewrap, cache_dir=tmp_path / "cache") as episode:
        episode.reset()
        assert episode.step(write.render())[4]["outcome"].kind is OutcomeKind.SCORED


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
        ("id,rent\n1,\n2,3\n", "row 2: rent is '', not a finite number"),
        ("id,rent,area\n1,2,3\n2,3,4\n", "column 'area', whose kind nothing states: .*`answers: {area: text}`"),
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
    assert grader.in_process.report.sum() == 300 and len(grader.in_process.report) == 600
    assert not np.array_equal(grader.in_process.report, build(rents, seed=1)[1].in_process.report)
    text = (rents / "prepare.py").read_text()
    text = text.replace(
        'test[["id", "rent"]]', 'test.assign(half=["reward", "report", "report"] * 200)[["id", "rent", "half"]]'
    )
    (rents / "prepare.py").write_text(text)
    _, grader = build(rents, seed=2)
    assert grader.in_process.report.tolist() == [False, True, True] * 200
    assert "half" not in grader.in_process.answers


def test_each_half_is_graded_alone_and_by_id(rents):
    directory, grader = build(rents)
    answers = truth(directory)
    guess = answers.assign(rent=np.where(grader.in_process.report, 2.0, 1.0) * answers["rent"])[["id", "rent"]]
    shuffled = guess.sample(frac=1.0, random_state=0).to_csv(index=False).encode()
    assert grader.grade(shuffled, "reward") == pytest.approx(0.0)
    assert grader.grade(shuffled, "report") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change_row", "message"),
    [
        ("{id},-5", "a rent is negative"),  # By grade.py itself.
        ("{id},nan", "not a finite number"),
        ("{id},1e101", "not a finite number"),
        ("{id},12,1", "3 cells"),
        ('{id},"12', "not a CSV file"),
        ("x,12", "unknown id 'x'"),
    ],
)
def test_an_invalid_submission_says_why_and_nothing_of_the_answers(rents, change_row, message):
    directory, grader = build(rents)
    answers = truth(directory)
    lines = ["id,rent", *(f"{name},1" for name in answers["id"])]
    place = 1 + int(np.flatnonzero(~grader.in_process.report)[0])
    lines[place] = change_row.format(id=answers["id"][place - 1])
    with pytest.raises(InvalidSubmissionError, match=message) as error:
        grader.grade("\n".join(lines).encode(), "reward")
    assert not any(str(rent) in str(error.value) for rent in answers["rent"])


@pytest.mark.parametrize(
    ("body", "message"),
    [("return submission['price']", "KeyError: 'price'"), ("return 'good'", "'good', not a number")],
)
def test_a_grade_that_fails_is_an_error_of_the_task(rents, body, message):
    (rents / "grade.py").write_text(f"def grade(submission, answers):\n    {body}\n")
    directory, grader = build(rents)
    guess = truth(directory)[["id", "rent"]].to_csv(index=False).encode()
    (directory / CONTROL).write_bytes(guess)
    with pytest.raises(GraderError) as error:
        grader.grade(guess, "reward")
    assert message in error.value.details and message not in str(error.value)


def test_texts_and_integers_are_columns_too(rents):
    change(rents, submission={"columns": {"rent": "integer", "note": "text"}, "id": "id"}, answers={"rent": "number"})
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
