"""Graders in processes of their own: whose fault a failure is, what a hang costs, and what never gets in or out."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from environments.tasks.graders import load_in_process
from environments.tasks.grading.isolated import CONTROL, IsolatedGrader
from environments.tasks.grading.own import OwnGrader, SubmissionForm
from environments.tasks.task import GraderError, GraderLimitError, InvalidSubmissionError

FORM = SubmissionForm("id", {"word": "text"})
TRUTH = {"id": ["a", "b"], "word": ["left", "right"]}
CONTROL_TEXT = b"id,word\na,left\nb,left\n"


@pytest.fixture
def grader(tmp_path):
    """`make(body, control, **limits)`: the grader of a task whose grade.py has this body."""
    made = []

    def make(body, control=CONTROL_TEXT, head="", **limits):
        private = tmp_path / "task@0" / "private"
        private.mkdir(parents=True, exist_ok=True)
        (private / "grade.py").write_text(f"{head}\ndef grade(submission, answers):\n    {body}\n")
        OwnGrader(FORM, TRUTH, np.array([False, True]), private / "grade.py").save(private)
        if control is not None:
            (private.parent / CONTROL).write_bytes(control)
        made.append(IsolatedGrader(private, load_in_process, **limits))
        return made[-1]

    yield make
    for grader in made:
        grader.close()


def answer(word):
    return f"id,word\na,{word}\nb,{word}\n".encode()


MEAN = "return (submission['word'] == answers['word']).mean()"


def test_one_process_grades_one_submission_after_the_other(grader):
    grader = grader("import os\n    return os.getpid() if submission['word'][0] == 'pid' else " + MEAN[7:])
    assert grader.grade(answer("left"), "reward") == 1.0 and grader.grade(answer("left"), "report") == 0.0
    assert grader.grade(answer("pid"), "reward") == grader.grade(answer("pid"), "reward")


def test_a_submission_that_alone_breaks_the_grader_is_the_policys_and_told(grader, caplog):
    grader = grader("return {'left': 1.0}[submission['word'][0]]")
    with pytest.raises(InvalidSubmissionError, match=r"cannot score it \(KeyError\)") as error:
        grader.grade(answer("secret"), "reward")
    assert not isinstance(error.value, GraderLimitError)
    told = json.loads(caplog.records[-1].message)
    assert (told["task"], told["blame"]) == ("task@0", "submission")
    assert "grade.py, line 3" in told["error"] and "KeyError: 'secret'" in told["details"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise MemoryError(list(answers['word']))", "MemoryError"),
        ("import zipfile; raise zipfile.BadZipFile(list(answers['word']))", "BadZipFile"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
        ("import sys; print(list(answers['word'])); sys.exit(3)", "SystemExit"),
        ("return list(answers['word'])", "TaskError"),
    ],
)
def test_a_grader_that_fails_for_all_is_ours_and_tells_labels_to_the_operator_alone(grader, caplog, body, kind):
    with pytest.raises(GraderError) as error:
        grader(body).grade(answer("right"), "reward")
    assert error.value.kind == kind and "left" not in str(error.value)
    told = json.loads(caplog.records[-1].message)
    assert told["blame"] == "host" and told["details"] == error.value.details


def test_a_grader_that_cannot_be_loaded_is_ours_whatever_is_handed_in(grader):
    for head in ("import no_such_module", "1 / 0", "def grade(:"):
        broken = grader(MEAN, head=head)
        with pytest.raises(GraderError) as error:
            broken.grade(b"", "reward")
        assert error.value.host


def test_a_failure_that_passes_is_no_failure(grader, tmp_path):
    flag = tmp_path / "flag"
    body = f"if not flag.exists(): flag.touch(); raise OSError('busy')\n    {MEAN}"
    made = grader(body, head=f"import pathlib; flag = pathlib.Path({str(flag)!r})")
    assert made.grade(answer("left"), "reward") == 1.0


def await_end(pid):
    """Until a process that is not ours to reap is gone or dead."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def test_a_hanging_grader_costs_its_limit_and_takes_what_it_started_along(grader, tmp_path):
    started = tmp_path / "started"
    body = (
        "if submission['word'][0] == 'hang':\n"
        "        child = subprocess.Popen(['sleep', '1000'])\n"
        f"        open({str(started)!r}, 'w').write(str(child.pid)); child.wait()\n    {MEAN}"
    )
    made = grader(body, head="import subprocess", seconds=3.0)
    assert made.grade(answer("left"), "reward") == 1.0
    with pytest.raises(GraderLimitError, match="time limit"):
        made.grade(answer("hang"), "reward")
    await_end(int(started.read_text()))
    assert made.grade(answer("left"), "reward") == 1.0


def test_memory_beyond_the_limit_is_refused_and_is_that_submissions_fault(grader):
    body = f"data = bytearray(1 << 36) if submission['word'][0] == 'much' else 0\n    {MEAN}"
    with pytest.raises(GraderLimitError, match="MemoryError"):
        grader(body).grade(answer("much"), "reward")


def test_closing_stops_what_is_being_graded(grader, tmp_path):
    started = tmp_path / "started"
    made = grader(f"import time; open({str(started)!r}, 'w'); time.sleep(1000)")

    def close():
        while not started.exists():
            time.sleep(0.01)
        made.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(GraderError):
        made.grade(answer("left"), "reward")
    closing.join()


def test_what_a_grader_prints_reaches_no_stream_of_ours(grader, capfd):
    body = f"import os, sys\n    print('label'); print('label', file=sys.stderr); os.write(1, b'label')\n    {MEAN}"
    assert grader(body).grade(answer("left"), "reward") == 1.0
    captured = capfd.readouterr()
    assert "label" not in captured.out + captured.err


def test_files_called_like_libraries_shadow_nothing(grader, tmp_path, monkeypatch):
    made = grader(MEAN)
    for folder in (tmp_path / "here", tmp_path / "task@0" / "private", tmp_path / "task@0" / "env"):
        folder.mkdir(exist_ok=True)
        for name in ("json", "pandas", "numpy", "sitecustomize"):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "here"), *sys.path])
    assert made.grade(answer("left"), "reward") == 1.0


def test_an_idle_process_ends_by_itself_and_the_next_submission_starts_another(grader):
    made = grader(MEAN)
    made.grade(answer("left"), "reward")
    process = made._idle[0]
    process._socket.shutdown(1)  # As when nothing is asked for long.
    while process.status is None:
        time.sleep(0.01)
    assert process.status == 0
    assert made.grade(answer("left"), "reward") == 1.0


def test_many_threads_grade_at_once(grader):
    made = grader(MEAN)
    with ThreadPoolExecutor(3) as threads:
        scores = list(threads.map(lambda word: made.grade(answer(word), "reward"), ["left", "right"] * 10))
    assert scores == [1.0, 0.0] * 10 and len(made._idle) <= 3
