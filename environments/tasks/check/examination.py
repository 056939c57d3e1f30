"""Examination of a prepared task for cheats: labels in public files, twins, and shortcuts that beat the reference.

    public/, env/ -> tables -> search: labels in columns          -> Examination
                            -> pairs of hidden and public rows -> twins, shortcuts (graded)

Everything here runs on the host, with the labels. `environments.tasks.check.leak_probe` searches from inside a sandbox.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from environments.tasks.check.duplicates import twins
from environments.tasks.check.search import find, hidden_labels
from environments.tasks.check.shortcuts import Guess, Rows, guesses, pair_rows, submission
from environments.tasks.check.tables import folder_table, read_tables
from environments.tasks.task import InvalidSubmissionError, TaskError

if TYPE_CHECKING:
    from environments.tasks.prepared import FolderTask


@dataclasses.dataclass(frozen=True)
class Examination:
    """Findings, one line each."""

    leaks: tuple[str, ...]
    """Labels in public files: file, column and row."""
    shortcuts: tuple[str, ...]
    """Guesses without learning that score better than the reference on both halves."""
    tables: int
    """Number of tables searched."""
    tried: tuple[str, ...]
    """Shortcuts that were graded."""


FILE = "examination.json"
"""File in private/ of a user's own task with the findings of its preparation."""


def warnings(task: FolderTask) -> tuple[str, ...]:
    """Return the findings for `task`. The examination runs once and is stored with the task."""
    kept = task.folder / "private" / FILE
    with contextlib.suppress(OSError, ValueError):
        return tuple(json.loads(kept.read_text(encoding="utf-8")))
    with contextlib.closing(dataclasses.replace(task)) as examined:  # with its own grader, whose processes end
        found = examine(examined)
    with contextlib.suppress(OSError):  # Prepared by another user: not writable.
        kept.write_text(json.dumps([*found.leaks, *found.shortcuts]), encoding="utf-8")
    return (*found.leaks, *found.shortcuts)


def examine(task: FolderTask) -> Examination:
    """Search a prepared task as a cheat would, without executing anything of it except its grader."""
    labels = task.grader.labels()
    if len(labels["id"]) < 2:  # A benchmark whose answers only its own grader knows.
        return Examination((), (), 0, ())
    tables = [*read_tables(task.env, ""), *read_tables(task.public, "data"), folder_table(task.public, "data")]
    pairs = pair_rows(tables, labels)
    public: Mapping[str, np.ndarray] = next((rows.targets for rows in pairs if rows.targets), {})
    leaks = [str(leak) for leak in find(tables, hidden_labels(labels, public))]
    leaks += [str(leak) for rows in pairs for leak in twins(rows, labels)]
    tried, better = [], []
    for rows in pairs:
        for guess, scores in _graded(task, rows, labels, public):
            tried.append(f"{rows.path}: {guess.name}")
            if all(score > 0 for score in scores.values()):
                better.append(f"{rows.path}: {guess.name} beats the reference")
    return Examination(tuple(dict.fromkeys(leaks)), tuple(better), len(tables), tuple(tried))


def _graded(
    task: FolderTask, rows: Rows, labels: Mapping[str, Sequence[str]], public: Mapping[str, np.ndarray]
) -> Iterator[tuple[Guess, dict[str, float]]]:
    """Yield each shortcut with its advantage over the reference on both halves."""
    grader = getattr(task.grader, "in_process", task.grader)
    id_column = getattr(grader, "id_column", None) or getattr(getattr(grader, "form", None), "id_column", "id")
    for guess in guesses(rows, labels, public):
        handed_in = submission(guess, id_column, task.grader.kinds, labels["id"])
        if handed_in is None:
            continue
        try:
            scores = {"reward": task.grade(handed_in), "report": task.grade_report(handed_in)}
        except (InvalidSubmissionError, TaskError):
            continue
        scales = {"reward": task.scale, "report": task.report_scale}
        yield guess, {half: scales[half].delta(scales[half].m_best, score) for half, score in scores.items()}
