"""Grading by a task's own grade.py: the submission is read strictly first, so that the function need only score.

grade.py is its author's code and is trusted with the labels: it runs beside them, outside of every sandbox. What it is
given is a complete table of finite cells in the order of the answers, whatever was handed in.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from environments.tasks.grading.submissions import CELL_BYTES, INTEGER, LARGEST, NUMBER
from environments.tasks.task import InvalidSubmissionError, TaskError

FORM = "form.json"
"""In private/: what a submission looks like. Marks a task with a grader of its own."""
HALF = "half"
"""Column of answers.csv that says which half a row is in."""
_TEXT_BYTES = 2000


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a column of a submission holds."""

    pattern: re.Pattern[str]
    what: str
    dtype: type
    max_bytes: int


CELLS = {
    "number": Cell(NUMBER, "a finite number", float, CELL_BYTES),
    "integer": Cell(INTEGER, "an integer", int, CELL_BYTES),
    "probability": Cell(NUMBER, "a number from 0 to 1", float, CELL_BYTES),
    "text": Cell(re.compile(r".+", re.DOTALL), "a text", str, _TEXT_BYTES),
}
"""Kinds of columns, as task.yaml names them."""


@dataclasses.dataclass(frozen=True)
class SubmissionForm:
    """The table that a submission must be, and what of the answers is a secret."""

    id_column: str
    columns: dict[str, str]
    """Kind of cell by column."""
    hidden: tuple[str, ...] = ()
    """Columns of the answers that nothing public may show; empty: all but the ids."""


@dataclasses.dataclass(frozen=True, eq=False)
class OwnGrader:
    """The answers of a task and its own function over them."""

    form: SubmissionForm
    answers: pd.DataFrame
    """As prepare.py wrote them, without the halves; ids are texts."""
    report: np.ndarray
    """`[rows]` bool: in the report half; the others are the reward half."""
    grade_path: Path

    @property
    def rows(self) -> int:
        return len(self.answers)

    @property
    def kinds(self) -> dict[str, str]:
        return self.form.columns

    @functools.cached_property
    def _function(self) -> Callable[[pd.DataFrame, pd.DataFrame], float]:
        return load_function(self.grade_path, "grade")

    def labels(self) -> dict[str, list[str]]:
        hidden = self.form.hidden or [name for name in self.answers if name != self.form.id_column]
        return {
            "id": list(self.answers[self.form.id_column]),
            **{name: list(map(str, self.answers[name])) for name in hidden},
        }

    def grade(self, submission: bytes, half: str) -> float:
        """Metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid cells, or grade.py refuses it.
          TaskError: grade.py raises anything else.
        """
        table = read_table(submission, self.form, list(self.answers[self.form.id_column]))
        chosen = self.report if half == "report" else ~self.report
        score = call(
            self.grade_path, self._function, *(part[chosen].reset_index(drop=True) for part in (table, self.answers))
        )
        try:
            score = float(score)
        except (TypeError, ValueError) as error:
            raise TaskError(f"{self.grade_path.name}: grade returned {score!r}, not a number") from error
        if not math.isfinite(score):
            raise InvalidSubmissionError("its metric is not a finite number")
        return score

    def save(self, private: Path) -> None:
        """Write to `private`, beside the grade.py that is there."""
        halves = np.where(self.report, "report", "reward")
        self.answers.assign(**{HALF: halves}).to_csv(private / "answers.csv", index=False)
        (private / FORM).write_text(json.dumps(dataclasses.asdict(self.form)), encoding="utf-8")

    @classmethod
    def load(cls, private: Path) -> OwnGrader:
        record = json.loads((private / FORM).read_text(encoding="utf-8"))
        form = SubmissionForm(record["id_column"], record["columns"], tuple(record["hidden"]))
        answers = read_answers(private / "answers.csv", form.id_column)
        return cls(form, answers.drop(columns=HALF), (answers[HALF] == "report").to_numpy(), private / "grade.py")


def read_answers(path: Path, id_column: str) -> pd.DataFrame:
    """answers.csv as a table whose ids are texts."""
    return pd.read_csv(path, dtype={id_column: str})


def read_table(submission: bytes, form: SubmissionForm, ids: list[str]) -> pd.DataFrame:
    """A submission with its rows in the order of `ids`.

    Raises:
      InvalidSubmissionError: too large, not UTF-8, wrong header, wrong number of cells, ids that are not exactly `ids`
        in any order, cells that are not of their column's kind. The message holds nothing of the answers.
    """
    names = [form.id_column, *form.columns]
    row_bytes = max(map(len, ids)) * 4 + 2 + sum(CELLS[kind].max_bytes + 3 for kind in form.columns.values())
    cap = len(",".join(names)) + 2 + len(ids) * row_bytes
    if len(submission) > cap:
        raise InvalidSubmissionError(f"the submission has {len(submission)} bytes, at most {cap} are read")
    try:
        rows = list(csv.reader(io.StringIO(submission.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidSubmissionError("the submission is not a CSV file in UTF-8") from error
    if not rows or rows[0] != names:
        raise InvalidSubmissionError(f"the first line must be {','.join(names)[:200]!r}")
    if len(rows) != len(ids) + 1:
        raise InvalidSubmissionError(f"the submission has {len(rows) - 1} rows, expected {len(ids)}")
    places = {name: place for place, name in enumerate(ids)}
    found: list[list[str] | None] = [None] * len(ids)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise InvalidSubmissionError(f"row {number} has {len(row)} cells, expected {len(names)}")
        place = places.get(row[0])
        if place is None:
            raise InvalidSubmissionError(f"row {number}: unknown id {row[0][:20]!r}")
        if found[place] is not None:
            raise InvalidSubmissionError(f"row {number}: id {row[0][:20]!r} is there twice")
        for (column, kind), text in zip(form.columns.items(), row[1:], strict=True):
            _check_cell(number, column, kind, text)
        found[place] = row
    table = pd.DataFrame(found, columns=names)
    for column, kind in form.columns.items():
        if kind != "text":
            table[column] = table[column].astype(float).astype(CELLS[kind].dtype)
    return table


def _check_cell(number: int, column: str, kind: str, text: str) -> None:
    cell = CELLS[kind]
    fits = len(text.encode()) <= cell.max_bytes and cell.pattern.fullmatch(text)
    if fits and kind != "text":
        fits = 0 <= float(text) <= 1 if kind == "probability" else abs(float(text)) <= LARGEST
    if not fits:
        raise InvalidSubmissionError(f"row {number}: {column} is {text[:20]!r}, not {cell.what}")


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """The function `name` of an author's file; the file is executed, and leaves no byte code beside it.

    Raises:
      TaskError: it cannot be read or executed, or has no such function.
    """
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except (OSError, SyntaxError, ValueError) as error:
        raise TaskError(f"{path} cannot be read: {error}") from error
    call(path, exec, code, namespace)
    if not callable(namespace.get(name)):
        raise TaskError(f"{path} has no function {name!r}: docs/bring_your_own_task.md shows one")
    return namespace[name]


def call(path: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, whose code is in `path`; what goes wrong in it is an error that names the line.

    Raises:
      InvalidSubmissionError: as the function raises it.
      TaskError: as the function raises it, or it raises anything else.
    """
    try:
        return function(*arguments)
    except (InvalidSubmissionError, TaskError):
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise TaskError(f"{path.name}{where} raised {type(error).__name__}: {error}") from error
