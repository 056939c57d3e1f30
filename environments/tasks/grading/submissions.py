"""Grading: from the bytes of a submission and the hidden labels to a metric, outside of every sandbox.

A submission is hostile. It is read as strict text (no quoting, no pickles, a cap on its size before anything is
parsed), and every way in which it can be wrong raises `InvalidSubmissionError` with a message made of the submission
and the public format alone: nothing in it follows from a label.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from environments.tasks.grading import metrics
from environments.tasks.grading.metrics import Form, Metric
from environments.tasks.task import InvalidSubmissionError

HALVES = ("reward", "report")
LARGEST = 1e12
"""Largest magnitude of a number: squares of it stay finite."""
CELL_BYTES = 40
"""No cell of a fair submission is longer: `-1.2345678901234567e-123` has 24."""
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
INTEGER = re.compile(r"[+-]?\d{1,9}(\.0*)?")


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """The hidden labels of a task, row by row of the hidden inputs, whose ids are 0 ... rows - 1."""

    metric: Metric
    classes: int
    """Number of classes, 0 for a regression."""
    truth: np.ndarray
    """`[rows]` or `[rows, outputs]`."""
    report: np.ndarray
    """`[rows]` bool: in the report half; the others are the reward half."""

    @property
    def columns(self) -> tuple[str, ...]:
        return metrics.columns(self.metric, self.classes, 1 if self.truth.ndim == 1 else self.truth.shape[1])

    @property
    def rows(self) -> int:
        return len(self.truth)

    @property
    def kinds(self) -> dict[str, str]:
        whole = self.metric.form in (Form.LABEL, Form.RANKING, Form.ORDINAL)
        return dict.fromkeys(self.columns, "integer" if whole else "number")

    def labels(self) -> dict[str, list[str]]:
        """Hidden values as text (see `graders.Grader.labels`)."""
        outputs = self.truth.reshape(len(self.truth), -1).T
        return {"id": [str(row) for row in range(self.rows)]} | {
            f"y{number}": [f"{value:.6g}" for value in output] for number, output in enumerate(outputs)
        }

    def grade(self, submission: bytes, half: str) -> float:
        """Metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
        """
        chosen = self.report if half == "report" else ~self.report
        prediction = read_submission(submission, self.metric.form, self.columns, len(self.truth), self.classes)
        return self.metric(self.truth[chosen], prediction[chosen])

    def save(self, path: Path) -> None:
        """Write as a NumPy archive without pickles."""
        np.savez_compressed(path, metric=self.metric.name, classes=self.classes, truth=self.truth, report=self.report)

    @classmethod
    def load(cls, path: Path) -> Answers:
        with np.load(path, allow_pickle=False) as archive:
            return cls(
                metric=metrics.get(str(archive["metric"])),
                classes=int(archive["classes"]),
                truth=archive["truth"],
                report=archive["report"],
            )


def read_submission(
    submission: bytes, form: Form, columns: tuple[str, ...], rows: int, classes: int
) -> np.ndarray:  # [rows, columns]
    """The predictions of a submission, in order of their ids.

    Raises:
      InvalidSubmissionError: too large, not ASCII, wrong header, wrong number of cells, ids that are not exactly
        0 ... rows - 1 in any order, cells that are not finite numbers of the form asked for.
    """
    header = ",".join(("id", *columns))
    cap = len(header) + 2 + rows * (CELL_BYTES * len(columns) + 12)
    if len(submission) > cap:
        raise InvalidSubmissionError(f"the submission has {len(submission)} bytes, at most {cap} are read")
    try:
        lines = submission.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidSubmissionError("the submission is not plain ASCII text") from error
    if not lines or lines[0] != header:
        raise InvalidSubmissionError(f"the first line must be {header[:200]!r}")
    if len(lines) != rows + 1:
        raise InvalidSubmissionError(f"the submission has {len(lines) - 1} rows, expected {rows}")
    whole = form in (Form.LABEL, Form.RANKING, Form.ORDINAL)
    pattern, what = (INTEGER, "an integer") if whole else (NUMBER, "a finite number")
    prediction = np.full((rows, len(columns)), np.nan)
    for number, line in enumerate(lines[1:], start=2):
        name, *cells = line.split(",")
        if len(cells) != len(columns):
            raise InvalidSubmissionError(f"line {number} has {len(cells) + 1} cells, expected {len(columns) + 1}")
        if not (name.isdigit() and len(name) <= 9 and int(name) < rows):
            raise InvalidSubmissionError(f"line {number}: unknown id {name[:20]!r}; ids are 0 to {rows - 1}")
        if not np.isnan(prediction[int(name), 0]):
            raise InvalidSubmissionError(f"line {number}: id {name} is there twice")
        for column, cell in zip(columns, cells, strict=True):
            if len(cell) > CELL_BYTES or not pattern.fullmatch(cell):
                raise InvalidSubmissionError(f"line {number}: {column} is {cell[:20]!r}, not {what}")
        prediction[int(name)] = [float(cell) for cell in cells]
    _check_range(prediction, form, classes)
    return prediction


def _check_range(prediction: np.ndarray, form: Form, classes: int) -> None:
    """Raise unless the values of `prediction` are such as `form` asks for."""
    if np.abs(prediction).max() > LARGEST:
        raise InvalidSubmissionError(f"a value is larger than {LARGEST:g} in magnitude")
    if form in (Form.LABEL, Form.RANKING) and (prediction.min() < 0 or prediction.max() >= classes):
        raise InvalidSubmissionError(f"a class is not one of 0 to {classes - 1}")
    if form is Form.RANKING and any(len(set(row)) < len(row) for row in prediction.tolist()):
        raise InvalidSubmissionError("a row lists a class twice")
    if form is Form.PROBABILITIES:
        if prediction.min() < 0 or prediction.max() > 1:
            raise InvalidSubmissionError("a probability is not between 0 and 1")
        if np.abs(prediction.sum(axis=1) - 1.0).max() > 0.01:
            raise InvalidSubmissionError("the probabilities of a row do not add up to 1")
