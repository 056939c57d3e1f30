"""Grading with our metrics, outside every sandbox: the bytes of a submission and the hidden labels give a metric.

A submission is hostile. `tables` parses it, and every defect raises `InvalidSubmissionError`, with a message made from
the submission and the public format alone. Nothing in it follows from a label.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from environments.tasks.grading import metrics, tables
from environments.tasks.grading.metrics import Form, Metric
from environments.tasks.task import InvalidSubmissionError


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Hidden labels of a task, in the order of the hidden inputs, whose ids are 0 ... rows - 1."""

    metric: Metric
    classes: int
    """Number of classes; 0 for a regression."""
    truth: np.ndarray
    """Labels, `[rows]` or `[rows, outputs]`."""
    report: np.ndarray
    """Whether a row is in the report half, `[rows]` bool; the others are the reward half."""

    @property
    def columns(self) -> tuple[str, ...]:
        return metrics.columns(self.metric, self.classes, 1 if self.truth.ndim == 1 else self.truth.shape[1])

    @property
    def rows(self) -> int:
        return len(self.truth)

    @property
    def kinds(self) -> dict[str, str]:
        return _kinds(self.metric.form, self.columns)

    def labels(self) -> dict[str, list[str]]:
        """Return hidden values as text (see `graders.Grader.labels`)."""
        outputs = self.truth.reshape(len(self.truth), -1).T
        return {"id": [str(row) for row in range(self.rows)]} | {
            f"y{number}": [f"{value:.6g}" for value in output] for number, output in enumerate(outputs)
        }

    def grade(self, submission: bytes, half: str) -> float:
        """Return the metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
        """
        chosen = self.report if half == "report" else ~self.report
        prediction = read_submission(submission, self.metric.form, self.columns, len(self.truth), self.classes)
        return self.metric(self.truth[chosen], prediction[chosen])

    def resampled(self, submission: bytes, draws: int, seed: int) -> list[list[float | None]]:
        """Return scores on resamples of the reward half; see `FolderTask.resampled`."""
        prediction = read_submission(submission, self.metric.form, self.columns, len(self.truth), self.classes)
        return resampled(lambda rows: self.metric(self.truth[rows], prediction[rows]), ~self.report, draws, seed)

    def close(self) -> None:
        """Do nothing: there are no processes."""

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


def resampled(
    score: Callable[[np.ndarray], float], reward: np.ndarray, draws: int, seed: int
) -> list[list[float | None]]:
    """Return `score` of bootstrap samples of rows, and of the rows that are not in each sample, as pairs.

    Args:
      score: maps row numbers, some of them repeated, to a score.
      reward: whether a row is in the reward half, `[rows]` bool.
      draws: number of samples.
      seed: seed of the samples.
    """
    rows, rng = np.flatnonzero(reward), np.random.default_rng(seed)
    pairs = []
    for _ in range(draws):
        drawn = np.sort(rng.choice(rows, len(rows)))
        pairs.append([_finite(score, part) for part in (drawn, np.setdiff1d(rows, drawn))])
    return pairs


def _finite(score: Callable[[np.ndarray], float], rows: np.ndarray) -> float | None:
    """Return the score of `rows`, or None if it has none, as the area under a curve of one class."""
    try:
        with np.errstate(all="ignore"):
            value = float(score(rows))
    except (ValueError, ZeroDivisionError, IndexError):
        return None
    return value if math.isfinite(value) else None


def read_submission(
    submission: bytes, form: Form, columns: tuple[str, ...], rows: int, classes: int
) -> np.ndarray:  # [rows, columns]
    """Return the predictions of a submission, in order of their ids, which are 0 ... rows - 1.

    Raises:
      InvalidSubmissionError: as for `tables.read_submission`, or the values do not fit `form`.
    """
    kinds = _kinds(form, columns)
    cells = tables.read_submission(submission, "id", kinds, [str(row) for row in range(rows)])
    prediction = np.stack([tables.values(kind, cells[name]).astype(float) for name, kind in kinds.items()], axis=1)
    _check_range(prediction, form, classes)
    return prediction


def _kinds(form: Form, columns: tuple[str, ...]) -> dict[str, str]:
    """Return the kind of cell (`tables.KINDS`) by column."""
    return dict.fromkeys(columns, "integer" if form in (Form.LABEL, Form.RANKING, Form.ORDINAL) else "number")


def _check_range(prediction: np.ndarray, form: Form, classes: int) -> None:
    """Check that the values of `prediction` fit `form`."""
    if form in (Form.LABEL, Form.RANKING) and (prediction.min() < 0 or prediction.max() >= classes):
        raise InvalidSubmissionError(f"a class is not one of 0 to {classes - 1}")
    if form is Form.RANKING and any(len(set(row)) < len(row) for row in prediction.tolist()):
        raise InvalidSubmissionError("a row lists a class twice")
    if form is Form.PROBABILITIES:
        if prediction.min() < 0 or prediction.max() > 1:
            raise InvalidSubmissionError("a probability is not between 0 and 1")
        if np.abs(prediction.sum(axis=1) - 1.0).max() > 0.01:
            raise InvalidSubmissionError("the probabilities of a row do not add up to 1")
