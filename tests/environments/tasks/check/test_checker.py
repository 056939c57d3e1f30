"""The checker passes what is right, and names what is wrong with a remedy."""

from __future__ import annotations

import contextlib
import json

import needs
import pytest

from environments.interfaces.command_line import main
from environments.tasks.check import checker
from environments.tasks.check.checker import check
from environments.tasks.grading.isolated import IsolatedGrader


def failed(folder, sandbox):
    """Messages and remedies by check of what is wrong with `folder`."""
    return {
        finding.check: f"{finding.message}; {finding.remedy}"
        for finding in check(str(folder), sandbox)
        if not finding.ok
    }


def append(path, text):
    path.write_text(f"{path.read_text()}{text}")


def test_a_folder_that_is_right_passes(rents, bubblewrap):
    assert failed(rents, bubblewrap) == {}


def test_every_mistake_of_a_folder_is_a_finding_of_its_own(rents):
    append(rents / "task.yaml", "\nsplit: other\ngpus: none\n")
    found = check(str(rents), None)
    assert [("split" in f.message, "gpus" in f.message, f.ok) for f in found] == [(1, 0, False), (0, 1, False)]


@pytest.mark.slow
@pytest.mark.docker
def test_a_folder_that_is_right_passes_in_a_container(rents):
    sandbox = needs.sandbox("docker")
    with contextlib.closing(sandbox):
        findings = check(str(rents), sandbox)
    assert [finding for finding in findings if not finding.ok] == []
    assert {"isolation", "labels", "ideas"} <= {finding.check for finding in findings}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wine", "energy-demand", "digits-denoise", "micro-rings-0"])
def test_our_own_tasks_pass(name, bubblewrap):
    assert failed(name, bubblewrap) == {}


@pytest.mark.slow
def test_the_command_line_reports_and_its_status_says_whether_all_is_well(rents, capfd, bubblewrap):
    (rents / "grade.py").write_text("def grade(submission, answers):\n    return 1 / 0\n")
    assert main(["check", str(rents), "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert not report["ok"]
    assert report["findings"][-1]["check"] == "prepare" and "ZeroDivisionError" in report["findings"][-1]["message"]
    assert main(["check", str(rents / "nowhere")]) == 1
    assert capfd.readouterr().out.startswith("FAIL  folder: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leak", "found"),
    [
        ("flats.to_csv(public / 'everything.csv')", "data/everything.csv: column 'rent', row "),
        (
            "test.sample(frac=1, random_state=0).to_csv(public / 'all.txt', index=False)",
            "data/all.txt: column 'rent', row ",
        ),
        ("test['rent'].astype('f8').to_numpy().tofile(public / 'x.bin')", "data/x.bin holds the hidden labels"),
        ("(public / 'x.json').write_text(str(list(test['rent'])))", "data/x.json holds the hidden labels"),
        ("(public / 'a').write_bytes((private / 'answers.csv').read_bytes())", "data/a: column 'rent', row "),
    ],
)
def test_labels_that_a_script_can_reach_are_found(rents, bubblewrap, leak, found):
    append(rents / "prepare.py", f"    {leak}\n")
    wrong = failed(rents, bubblewrap)
    assert set(wrong) - {"shortcuts"} == {"labels"}
    assert found in wrong["labels"] and "prepare.py" in wrong["labels"]


@pytest.mark.slow
def test_labels_in_another_order_than_the_rows_beat_the_reference(rents, bubblewrap):
    append(rents / "prepare.py", "    test = test.assign(rent_=test['rent'].shift(-2)).drop(columns='rent')\n")
    append(rents / "prepare.py", "    test.to_csv(public / 'test.csv', index=False)\n")
    wrong = failed(rents, bubblewrap)
    assert set(wrong) == {"labels", "shortcuts"}
    assert "data/test.csv: column 'rent_', row 2: is rent of hidden row 3" in wrong["labels"]
    assert "column 'rent_' -2 rows, as it is beats the reference" in wrong["shortcuts"]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_submission_is_read_as_its_grader_reads_it(tmp_path, bubblewrap, end):
    """Labels with line ends in them are quoted, and the last line need not end."""
    labels = ["low", "two\nlines", "high"]
    script = (
        "import csv, io\n"
        "rows = list(csv.reader(open('data/test.csv', newline='')))[1:]\n"
        "out = io.StringIO()\n"
        "csv.writer(out, lineterminator='\\n').writerows([['id', 'label'], *([i, SAID] for (i,) in rows)])\n"
        f"open('submission.csv', 'w', newline='').write(out.getvalue().rstrip('\\n') + {end!r})\n"
    )
    folder = tmp_path / "lines"
    (folder / "env").mkdir(parents=True)
    (folder / "task.yaml").write_text(
        "name: lines\nkind: text\nmetric: {name: accuracy, direction: higher}\nsubmission:\n  columns: {label: text}\n"
    )
    (folder / "description.md").write_text("Tell the label.\n")
    (folder / "prepare.py").write_text(
        "import csv\n\n\ndef prepare(raw, public, private, seed):\n"
        f"    rows = [[i, {labels!r}[i * 7 % 3]] for i in range(40)]\n"
        "    with open(public / 'test.csv', 'w', newline='') as file:\n"
        "        csv.writer(file).writerows([['id'], *([i] for i, _ in rows)])\n"
        "    with open(private / 'answers.csv', 'w', newline='') as file:\n"
        "        csv.writer(file).writerows([['id', 'label'], *rows])\n"
    )
    (folder / "grade.py").write_text(
        "def grade(submission, answers):\n    return (submission['label'] == answers['label']).mean()\n"
    )
    (folder / "env" / "train.py").write_text(script.replace("SAID", repr(labels[1])))
    (folder / "reference.py").write_text(script.replace("SAID", f"{labels!r}[int(i) * 7 % 3]"))
    assert failed(folder, bubblewrap) == {}


@pytest.mark.slow
def test_data_that_change_with_every_preparation_are_found(rents, bubblewrap):
    append(rents / "prepare.py", "    import uuid\n    (public / 'x').write_text(str(uuid.uuid4()))\n")
    assert list(failed(rents, bubblewrap)) == ["deterministic"]


@pytest.mark.slow
def test_a_starting_script_that_scores_by_chance_is_found(rents, bubblewrap, monkeypatch):
    run = checker.run_script

    def another_time(script, *rest):
        return run(script.replace('columns = ["floor"]', 'columns = ["area"]'), *rest)

    monkeypatch.setattr(checker, "run_script", another_time)
    wrong = failed(rents, bubblewrap)
    assert list(wrong) == ["starting script"] and "MLAGENT_SEED" in wrong["starting script"]


def test_an_idea_that_does_not_run_is_found(rents, bubblewrap):
    append(rents / "task.yaml", "  - {text: more trees, cell: model, code: model = Trees()}\n")
    wrong = failed(rents, bubblewrap)
    assert list(wrong) == ["ideas"]
    assert "'more trees'" in wrong["ideas"] and "NameError" in wrong["ideas"]


def test_a_grader_that_accepts_what_it_should_refuse_is_found(rents, bubblewrap, monkeypatch):
    grade = IsolatedGrader.grade

    def lenient(grader, submission, half):
        return 1.0 if b",nan" in submission or b",abc" in submission else grade(grader, submission, half)

    monkeypatch.setattr(IsolatedGrader, "grade", lenient)
    wrong = failed(rents, bubblewrap)
    assert {"submission: a cell of 'nan'", "submission: a cell of 'abc'"} <= set(wrong)
    assert "submission: a row missing" not in wrong
