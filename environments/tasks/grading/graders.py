"""Which grader a prepared task has, from what lies in its private/ folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from environments.tasks.adapters import mlagentbench, mlebench
from environments.tasks.grading import own as own_grading
from environments.tasks.grading import submissions as grading


class Grader(Protocol):
    """Hidden labels in two halves, and how a submission is held against them."""

    @property
    def rows(self) -> int:
        """Number of hidden rows."""

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of cell (`own_grading.CELLS`) by column of a submission, but for the ids."""

    def labels(self) -> dict[str, list[str]]:
        """Hidden values as text, by column, and under `id` the ids that they belong to: for the checker alone."""

    def grade(self, submission: bytes, half: str) -> float:
        """Metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
        """


def load_grader(private: Path) -> Grader:
    """The grader whose files are in `private`: the task's own grade.py, that of another benchmark, or one of our
    metrics."""
    if (private / own_grading.FORM).exists():
        return own_grading.OwnGrader.load(private)
    if (private / mlebench.MARK).exists():
        return mlebench.MleBenchGrader.load(private)
    if (private / mlagentbench.MARK).exists():
        return mlagentbench.BenchmarkGrader(private)
    return grading.Answers.load(private / "answers.npz")
