"""Abuse case 28: a submission that is not a fair, complete table is refused, and the refusal tells nothing."""

from __future__ import annotations

import numpy as np
import pytest

from environments.tasks.grading.metrics import METRICS
from environments.tasks.grading.submissions import Answers
from environments.tasks.task import InvalidSubmissionError

TRUTH = np.array([10.0, 20.0, 30.0, 40.0])
REPORT = np.array([False, True, False, True])


def table(header: str, *rows: str) -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def numbers(metric: str = "mae") -> Answers:
    return Answers(METRICS[metric], 0, TRUTH, REPORT)


def classes(metric: str, count: int = 3) -> Answers:
    return Answers(METRICS[metric], count, np.array([0, 1, 2, 1]) % count, REPORT)


GOOD = ("0,11", "1,22", "2,33", "3,44")


def test_halves_are_graded_apart():
    answers = numbers()
    assert answers.grade(table("id,value", *GOOD), "reward") == pytest.approx(2.0)
    assert answers.grade(table("id,value", *GOOD), "report") == pytest.approx(3.0)


def test_order_of_rows_is_free_and_values_follow_their_ids():
    shuffled = (GOOD[2], GOOD[0], GOOD[3], GOOD[1])
    assert numbers().grade(table("id,value", *shuffled), "reward") == pytest.approx(2.0)


@pytest.mark.parametrize(
    "submission",
    [
        b"",
        b"\x00\xff\xfe",
        table("id,values", *GOOD),
        table("id,value,label", *GOOD),
        table("value,id", *GOOD),
        table("id,value", *GOOD[:3]),
        table("id,value", *GOOD, "4,1"),
        table("id,value", *GOOD[:3], "2,1"),
        table("id,value", *GOOD[:3], "4,1"),
        table("id,value", *GOOD[:3], "-1,1"),
        table("id,value", *GOOD[:3], "3.0,1"),
        table("id,value", *GOOD[:3], "3,nan"),
        table("id,value", *GOOD[:3], "3,inf"),
        table("id,value", *GOOD[:3], "3,-Infinity"),
        table("id,value", *GOOD[:3], "3,1e999"),
        table("id,value", *GOOD[:3], "3,1e300"),
        table("id,value", *GOOD[:3], "3,"),
        table("id,value", *GOOD[:3], "3,1,2"),
        table("id,value", *GOOD[:3], "3,0x10"),
        table("id,value", *GOOD[:3], "3,1_000"),
        table("id,value", *GOOD[:3], "3,=1+1"),
        table("id,value", *GOOD[:3], "3,\u0663"),
        table("id,value", *GOOD[:3], "3," + "9" * 1000),
    ],
)
def test_broken_tables_are_refused(submission):
    with pytest.raises(InvalidSubmissionError):
        numbers().grade(submission, "reward")


def test_a_bomb_is_refused_by_its_size_before_it_is_parsed():
    with pytest.raises(InvalidSubmissionError, match="bytes"):
        numbers().grade(b"id,value\n" + b"0,1\n" * 10_000_000, "reward")


@pytest.mark.parametrize(
    ("metric", "header", "rows"),
    [
        ("accuracy", "id,label", ("0,0", "1,1", "2,2", "3,3")),
        ("accuracy", "id,label", ("0,0", "1,1", "2,2", "3,-1")),
        ("accuracy", "id,label", ("0,0", "1,1", "2,2", "3,0.5")),
        ("log_loss", "id,p_0,p_1,p_2", ("0,1,0,0", "1,1,0,0", "2,1,0,0", "3,1,1,1")),
        ("log_loss", "id,p_0,p_1,p_2", ("0,1,0,0", "1,1,0,0", "2,1,0,0", "3,2,-1,0")),
        ("map_at_3", "id,top_1,top_2,top_3", ("0,0,1,2", "1,0,1,2", "2,0,1,2", "3,1,1,1")),
    ],
)
def test_values_outside_of_their_form_are_refused(metric, header, rows):
    with pytest.raises(InvalidSubmissionError):
        classes(metric).grade(table(header, *rows), "reward")


def test_probabilities_are_read_and_clipped():
    rows = ("0,1,0,0", "1,0,1,0", "2,0,0,1", "3,1,0,0")
    answers = classes("log_loss")
    assert answers.grade(table("id,p_0,p_1,p_2", *rows), "reward") == pytest.approx(0.0, abs=1e-4)
    assert 5 < answers.grade(table("id,p_0,p_1,p_2", *rows), "report") < 14


def test_refusals_do_not_depend_on_the_labels():
    broken = table("id,value", *GOOD[:3], "3,nan")
    messages = set()
    for truth in (TRUTH, -TRUTH):
        with pytest.raises(InvalidSubmissionError) as caught:
            Answers(METRICS["mae"], 0, truth, REPORT).grade(broken, "reward")
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_answers_survive_saving(tmp_path):
    answers = classes("log_loss")
    answers.save(tmp_path / "answers.npz")
    again = Answers.load(tmp_path / "answers.npz")
    assert again.columns == answers.columns
    assert np.array_equal(again.truth, answers.truth) and np.array_equal(again.report, answers.report)
