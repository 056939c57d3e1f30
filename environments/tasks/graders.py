"""The choice of a prepared task's grader, by the files in its private/ folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from environments.tasks.adapters import mlagentbench, mlebench
from environments.tasks.grading import own as own_grading
from environments.tasks.grading import submissions as grading
from environments.tasks.grading.isolated import IsolatedGrader


class Grader(Protocol):
    """Grader of submissions against hidden labels in two halves."""

    @property
    def rows(self) -> int:
        """Number of hidden rows."""

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of cell (`tables.KINDS`) by column of a submission, without the ids."""

    def labels(self) -> dict[str, list[str]]:
        """Return hidden values as text, by column, and their ids under `id`: for the checker alone."""

    def grade(self, submission: bytes, half: str) -> float:
        """Return the metric of `submission` on `half`, `reward` or `report`.

        Raises:
          InvalidSubmissionError: it is not a complete table of valid predictions.
          GraderError: the grader fails, and the submission is not the cause.
        """

    def resampled(self, submission: bytes, draws: int, seed: int) -> list[list[float | None]] | None:
        """Return scores on resamples of the reward half; see `FolderTask.resampled`."""

    def close(self) -> None:
        """End the grader's processes, if any; requests in flight fail with a GraderError."""


def load_grader(private: Path) -> Grader:
    """Load the grader whose files are in `private`.

    Our metrics run in this process, which costs only reading the submission. Code of a task's author or of a benchmark
    runs in separate processes.
    """
    own = any((private / mark).exists() for mark in (own_grading.FORM, mlebench.MARK, mlagentbench.MARK))
    return IsolatedGrader(private, load_in_process) if own else load_in_process(private)


Trusted = grading.Answers | own_grading.OwnGrader | mlebench.MleBenchGrader | mlagentbench.BenchmarkGrader


def load_in_process(private: Path) -> Trusted:
    """Load the grader whose files are in `private`, for calls in this process, without executing the task's code.

    It is the task's own grade.py, another benchmark's, or one of our metrics.
    """
    if (private / own_grading.FORM).exists():
        return own_grading.OwnGrader.load(private)
    if (private / mlebench.MARK).exists():
        return mlebench.MleBenchGrader.load(private)
    if (private / mlagentbench.MARK).exists():
        return mlagentbench.BenchmarkGrader(private)
    return grading.Answers.load(private / "answers.npz")
