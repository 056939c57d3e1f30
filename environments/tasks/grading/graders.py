"""Which grader a prepared task has, from what lies in its private/ folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from environments.tasks.adapters import mlagentbench, mlebench
from environments.tasks.grading import own as own_grading
from environments.tasks.grading import submissions as grading
from environments.tasks.grading.isolated import IsolatedGrader


class Grader(Protocol):
    """Hidden labels in two halves, and how a submission is held against them."""

    @property
    def rows(self) -> int:
        """Number of hidden rows."""

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of cell (`tables.KINDS`) by column of a submission, but for the ids."""

    def labels(self) -> dict[str, list[str]]:
        """Hidden values as text, by column, and under `id` the ids that they belong to: for the checker alone."""

    def grade(self, submission: bytes, half: str) -> float:
        """Metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
          GraderError: the grader fails, and the submission is not the cause.
        """

    def close(self) -> None:
        """End its processes, if it has any; requests under way fail with a GraderError."""


def load_grader(private: Path) -> Grader:
    """The grader whose files are in `private`. One of our metrics grades in this process, at the cost of reading the
    submission; code of a task's author or of a benchmark runs in processes of its own."""
    own = any((private / mark).exists() for mark in (own_grading.FORM, mlebench.MARK, mlagentbench.MARK))
    return IsolatedGrader(private, load_in_process) if own else load_in_process(private)


Trusted = grading.Answers | own_grading.OwnGrader | mlebench.MleBenchGrader | mlagentbench.BenchmarkGrader


def load_in_process(private: Path) -> Trusted:
    """The grader whose files are in `private`, to be called in this process: the task's own grade.py, that of another
    benchmark, or one of our metrics. Loading executes nothing of the task."""
    if (private / own_grading.FORM).exists():
        return own_grading.OwnGrader.load(private)
    if (private / mlebench.MARK).exists():
        return mlebench.MleBenchGrader.load(private)
    if (private / mlagentbench.MARK).exists():
        return mlagentbench.BenchmarkGrader(private)
    return grading.Answers.load(private / "answers.npz")
