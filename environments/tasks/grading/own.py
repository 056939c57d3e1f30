"""Grading by a task's own grade.py: the submission is parsed strictly first, so the function only computes the score.

grade.py is its author's code and is trusted with the labels. It runs outside every sandbox, in its own process
(`isolated`). It always gets a complete table of checked cells in the order of the answers.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from environments.tasks.grading import tables
from environments.tasks.grading.submissions import resampled
from environments.tasks.task import InvalidSubmissionError, TaskError

FORM = "form.json"
"""File in private/ with the form of a submission. Marks a task with its own grader."""
HALF = "half"
"""Column of answers.csv with the half of each row."""


@dataclasses.dataclass(frozen=True)
class SubmissionForm:
    """Form of a submission and of the answers."""

    id_column: str
    columns: dict[str, str]
    """Kind of cell (`tables.KINDS`) by column of a submission."""
    hidden: tuple[str, ...] = ()
    """Columns of the answers that must not appear in public data; empty: all except the ids."""
    answers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Kind of cell by column of the answers, for columns that a submission lacks or holds as another kind."""

    @property
    def answer_kinds(self) -> dict[str, str]:
        """Kind of cell by possible column of the answers."""
        return {**self.columns, **self.answers, self.id_column: "text", HALF: "text"}


@dataclasses.dataclass(frozen=True, eq=False)
class OwnGrader:
    """A task's answers and its own scoring function."""

    form: SubmissionForm
    cells: dict[str, Sequence[str]]
    """Answers by column as prepare.py wrote them, without the halves."""
    report: np.ndarray
    """Whether a row is in the report half, `[rows]` bool; the others are the reward half."""
    grade_path: Path

    @property
    def rows(self) -> int:
        return len(self.report)

    @property
    def kinds(self) -> dict[str, str]:
        return self.form.columns

    @functools.cached_property
    def answers(self) -> pd.DataFrame:
        """Answers as grade.py gets them; ids are texts."""
        return tables.frame(self.cells, self.form.answer_kinds)

    @functools.cached_property
    def _function(self) -> Callable[[pd.DataFrame, pd.DataFrame], float]:
        return load_function(self.grade_path, "grade")

    def open(self) -> None:
        """Execute grade.py, so that errors in code or answers show before a submission is graded."""
        _ = self._function, self.answers

    def labels(self) -> dict[str, list[str]]:
        hidden = self.form.hidden or [name for name in self.cells if name != self.form.id_column]
        return {"id": list(self.cells[self.form.id_column]), **{name: list(self.cells[name]) for name in hidden}}

    def grade(self, submission: bytes, half: str) -> float:
        """Return the metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid cells, or grade.py refuses it.
          TaskError: grade.py returns no number.
          Exception: any other exception of grade.py.
        """
        chosen = self.report if half == "report" else ~self.report
        return self._score(self._table(submission), np.flatnonzero(chosen))

    def resampled(self, submission: bytes, draws: int, seed: int) -> list[list[float | None]]:
        """Return scores on resamples of the reward half; see `FolderTask.resampled`."""
        table = self._table(submission)
        return resampled(lambda rows: self._score(table, rows), ~self.report, draws, seed)

    def _table(self, submission: bytes) -> pd.DataFrame:
        """Return a submission as grade.py gets it."""
        ids = self.cells[self.form.id_column]
        cells = tables.read_submission(submission, self.form.id_column, self.form.columns, ids)
        return tables.frame(cells, self.form.columns)

    def _score(self, table: pd.DataFrame, rows: np.ndarray) -> float:
        """Return grade.py's score of some rows of a submission."""
        score = self._function(*(part.iloc[rows].reset_index(drop=True) for part in (table, self.answers)))
        try:
            score = float(score)
        except (TypeError, ValueError) as error:
            raise TaskError(f"{self.grade_path.name}: grade returned {score!r}, not a number") from error
        if not math.isfinite(score):
            raise InvalidSubmissionError("its metric is not a finite number")
        return score

    def save(self, private: Path) -> None:
        """Write to `private`, beside its grade.py."""
        columns = {**self.cells, HALF: np.where(self.report, "report", "reward").tolist()}
        with open(private / "answers.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
        (private / FORM).write_text(json.dumps(dataclasses.asdict(self.form)), encoding="utf-8")

    @classmethod
    def load(cls, private: Path) -> OwnGrader:
        record = json.loads((private / FORM).read_text(encoding="utf-8"))
        form = SubmissionForm(**{**record, "hidden": tuple(record["hidden"])})
        cells = read_answers(private / "answers.csv", form)
        report = np.array(cells.pop(HALF)) == "report"
        return cls(form, cells, report, private / "grade.py")


def read_answers(path: Path, form: SubmissionForm) -> dict[str, Sequence[str]]:
    """Read answers.csv by column and check the kinds that `form` declares.

    Raises:
      TaskError: not a table, a missing or undeclared column, a cell of another kind, a duplicate id.
    """
    try:
        header, rows = tables.read_table(path.read_bytes())
        cells = dict(zip(header, zip(*rows, strict=True) if rows else ((),) * len(header), strict=True))
        for name in (form.id_column, *form.hidden, *form.answers):
            if name not in cells:
                raise TaskError(f"answers.csv has no column {name!r}; it has {', '.join(header)}")
        for name in header:
            if name not in form.answer_kinds:
                raise TaskError(
                    f"answers.csv has the column {name!r}, whose kind nothing states: write for example "
                    f"`answers: {{{name}: text}}` in task.yaml (one of {', '.join(tables.KINDS)})"
                )
            tables.check_column(name, form.answer_kinds[name], cells[name])
    except tables.TableError as error:
        raise TaskError(f"answers.csv: {error}") from error
    ids = cells[form.id_column]
    if "" in ids or len(set(ids)) < len(ids):
        raise TaskError(f"answers.csv: the ids ({form.id_column}) must be there and different in every row")
    return cells


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """Execute an author's file, without leaving byte code, and return its function `name`.

    Raises:
      TaskError: it cannot be read, or has no such function.
      Exception: any exception of the file.
    """
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except (OSError, SyntaxError, ValueError) as error:
        raise TaskError(f"{path} cannot be read: {error}") from error
    exec(code, namespace)  # noqa: S102 - its author is trusted
    if not callable(namespace.get(name)):
        raise TaskError(f"{path} has no function {name!r}: docs/bring_your_own_task.md shows one")
    return namespace[name]


def line_of(error: BaseException, path: Path) -> str:
    """Return the line of the author's file that raised an exception, as `grade.py, line 2`."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path.name}, line {lines[-1]}" if lines else path.name
