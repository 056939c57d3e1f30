"""Competitions of MLE-bench (arXiv 2410.07095) as tasks: `mlebench-<competition>`.

MLE-bench provides the data that `mlebench prepare` split, the grader, the leaderboard and the medal thresholds. The
answers are in the prepared task's private/. Grading runs outside the sandbox, with the package `mlebench`, which every
host that grades needs. m_init is the score of the sample submission (with numbered rows, if a constant has no score),
m_best the gold medal's threshold.

    halves      the hidden rows, split by id if a submission has a row for each; the reward half trains
    official    the score over all hidden rows with its medal, as MLE-bench reports it
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import io
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from environments.protocol import Limits
from environments.tasks.grading.halves import report_half
from environments.tasks.grading.isolated import CONTROL, IsolatedGrader
from environments.tasks.task import M_BEST, GraderError, InvalidSubmissionError, TaskError, TaskSpec

PREFIX = "mlebench-"
MARK = "mlebench.json"
"""File in private/ with the competition's name and the halves of its rows."""
INSTALL = "pip install git+https://github.com/openai/mle-bench"
LIMITS = Limits(cpu_seconds=1800, wall_seconds=3600, memory_mb=8192, file_mb=1024, disk_mb=4096)
_IMAGES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm", ".bmp"}
_SCRIPT = """# %% predict
import shutil

shutil.copyfile("data/sample_submission.csv", "submission.csv")
"""
_NUMBERED = """# %% predict
import numpy as np
import pandas as pd

# The sample says the same of every row, for which the metric is not defined.
submission = pd.read_csv("data/sample_submission.csv")
for column in submission.select_dtypes("number"):
    if submission[column].nunique() == 1:
        submission[column] = np.linspace(0, 1, len(submission))
submission.to_csv("submission.csv", index=False)
"""
_MESSAGE_LETTERS = 300
_LARGER = 4
"""Maximum number of lines of a submission, as a multiple of the sample's."""
_MORE_COLUMNS = 200
"""Maximum number of columns beyond the sample's. A few extra columns are harmless: graders read only known ones."""


@dataclasses.dataclass(frozen=True)
class MleBenchRecipe:
    """An `environments.tasks.task.Task` made from a competition."""

    spec: TaskSpec
    competition: str

    def build(self, directory: Path, seed: int) -> TaskSpec:
        """Write env/, public/ and private/ under `directory` (see `environments.tasks.task.Task`).

        Raises:
          TaskError: the competition is not prepared, or its leaderboard is missing.
        """
        competition, leaderboard = open_competition(self.competition), read_leaderboard(self.competition)
        for place, file in (("public", competition.public_dir), ("private", competition.answers)):
            if not file.exists():
                raise TaskError(
                    f"{self.spec.name}: its {place} data are not at {file}: run `mlebench prepare -c "
                    f"{self.competition}`, and set MLEBENCH_DATA_DIR to the folder where it puts them"
                )
        env, public, private = (directory / name for name in ("env", "public", "private"))
        env.mkdir()
        shutil.copytree(competition.public_dir, public)
        private.mkdir(mode=0o700)
        shutil.copyfile(competition.sample_submission, public / "sample_submission.csv")
        (public / "description.md").write_text(competition.description, encoding="utf-8")
        answers = private / f"answers{competition.answers.suffix}"
        shutil.copyfile(competition.answers, answers)
        leaderboard.to_csv(private / "leaderboard.csv", index=False)
        script = self._write_grader(private, answers, public, seed)
        (env / self.spec.entry).write_text(script, encoding="utf-8")
        thresholds = competition.grader.rank_score(None, leaderboard)
        (private / M_BEST).write_text(json.dumps(thresholds["gold_threshold"]), encoding="utf-8")
        return self.spec

    def _write_grader(self, private: Path, answers: Path, public: Path, seed: int) -> str:
        """Write the grader's record and return the script that submits a first submission.

        There are halves if the first submission can be graded on each of them.
        """
        sample = (public / "sample_submission.csv").read_bytes()
        shape = (sample.count(b"\n") + 1, len(pd.read_csv(io.BytesIO(sample), nrows=0).columns))
        whole, script = MleBenchGrader(self.competition, private, answers.name, None, None, shape), _SCRIPT
        if not whole.scores(sample, "reward"):
            sample, script = _numbered(sample), _NUMBERED
        id_column = _id_column(whole.answers, pd.read_csv(io.BytesIO(sample)))
        if id_column is not None:
            halved = dataclasses.replace(whole, id_column=id_column, report=report_half(len(whole.answers), seed))
            if not halved.scores(sample, "reward", "report"):  # The grader needs all rows.
                whole.save()
        (private.parent / CONTROL).write_bytes(sample)
        return script


@dataclasses.dataclass(frozen=True, eq=False)
class MleBenchGrader:
    """A competition's answers and its MLE-bench grader (`environments.tasks.graders.Grader`)."""

    competition: str
    private: Path
    answers_file: str
    id_column: str | None
    """Id column of submissions and answers. None: rows cannot be matched, and each half is the whole."""
    report: np.ndarray | None
    """Whether an answer is in the report half, `[rows]` bool."""
    shape: tuple[int, int]
    """Lines and columns of the sample submission."""

    @functools.cached_property
    def answers(self) -> Any:
        """Answers in the form that the grader takes: a table, or the records of a JSON Lines file."""
        from mlebench.utils import load_answers

        return load_answers(self.private / self.answers_file)

    @functools.cached_property
    def _grader(self) -> Any:
        return open_competition(self.competition).grader

    @property
    def rows(self) -> int:
        return len(self.answers)

    @property
    def kinds(self) -> dict[str, str]:
        return {}

    def open(self) -> None:
        """Import the grader and read the answers, before a submission is graded."""
        _ = self._grader, self.answers

    def labels(self) -> dict[str, list[str]]:
        if not isinstance(self.answers, pd.DataFrame) or self.id_column is None:
            return {"id": []}
        columns = {name: list(map(str, self.answers[name])) for name in self.answers if name != self.id_column}
        return {"id": list(map(str, self.answers[self.id_column])), **columns}

    def grade(self, submission: bytes, half: str) -> float:
        """Return the metric of `submission` on `half`, `reward` or `report`; on all rows if there are no halves.

        Raises:
          InvalidSubmissionError: the submission is not a table, or the grader refuses it.
        """
        table, answers = self._read(submission), self.answers
        if self.id_column is not None:
            answers = answers[self.report if half == "report" else ~self.report]
            ids = table[self.id_column].astype(str) if self.id_column in table else None
            everything = self.answers[self.id_column].astype(str)
            if ids is None or ids.duplicated().any() or set(ids) != set(everything):
                raise InvalidSubmissionError(
                    f"{self.id_column} must be there once for each row of sample_submission.csv"
                )
            table = table[ids.isin(set(answers[self.id_column].astype(str)))].reset_index(drop=True)
            answers = answers.reset_index(drop=True)
        return self._score(table, answers)

    def official(self, submission: bytes) -> dict[str, Any]:
        """Return MLE-bench's report of a submission.

        Returns:
          `score` over all hidden rows, `medal` (gold, silver, bronze or none), `above_median`, and the threshold of
          each.

        Raises:
          InvalidSubmissionError: the submission is not a table, or the grader refuses it.
        """
        score = round(self._score(self._read(submission), self.answers), 5)
        rank = self._grader.rank_score(score, pd.read_csv(self.private / "leaderboard.csv"))
        medal = next((name for name in ("gold", "silver", "bronze") if rank[f"{name}_medal"]), "none")
        lines = {name: value for name, value in rank.items() if name.endswith("_threshold")}
        return {"score": score, "medal": medal, "above_median": bool(rank["above_median"]), **lines}

    def scores(self, submission: bytes, *halves: str) -> bool:
        """Save the grader, and check whether the saved grader scores `submission` on these halves.

        Raises:
          GraderError: the grader cannot be loaded.
        """
        self.save()
        grader = IsolatedGrader(self.private, self.load)
        try:
            return all(math.isfinite(grader.grade(submission, half)) for half in halves)
        except InvalidSubmissionError:
            return False
        except GraderError as error:
            if error.host:
                raise
            return False
        finally:
            grader.close()

    def _read(self, submission: bytes) -> pd.DataFrame:
        """Read a hostile submission as a table.

        Raises:
          InvalidSubmissionError: it is not a table, or is so much larger than the sample that reading it could exhaust
            the memory of this host: a line of nothing but commas is a million columns.
        """
        lines, columns = self.shape
        if (
            submission.count(b"\n") > _LARGER * lines
            or submission.partition(b"\n")[0].count(b",") > columns + _MORE_COLUMNS
        ):
            raise InvalidSubmissionError("the submission has many more rows or columns than sample_submission.csv")
        try:
            return pd.read_csv(io.BytesIO(submission))
        except (ValueError, UnicodeDecodeError, csv.Error, OverflowError) as error:
            raise InvalidSubmissionError("the submission is not a CSV file in UTF-8") from error

    def _score(self, table: pd.DataFrame, answers: Any) -> float:
        from mlebench.grade_helpers import InvalidSubmissionError as Refused

        try:
            score = float(self._grader.grade_fn(table.copy(), answers.copy()))  # Some graders change their arguments.
        except Refused as error:
            raise InvalidSubmissionError(str(error)[:_MESSAGE_LETTERS]) from error
        if not math.isfinite(score):
            raise InvalidSubmissionError("its metric is not a finite number")
        return score

    def save(self) -> None:
        """Write the grader's record to `private`."""
        report = None if self.report is None else self.report.astype(int).tolist()
        record = {"competition": self.competition, "answers": self.answers_file}
        record |= {"id_column": self.id_column, "report": report, "shape": list(self.shape)}
        (self.private / MARK).write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(cls, private: Path) -> MleBenchGrader:
        record = json.loads((private / MARK).read_text(encoding="utf-8"))
        report = None if record["report"] is None else np.array(record["report"], dtype=bool)
        return cls(
            record["competition"], private, record["answers"], record["id_column"], report, tuple(record["shape"])
        )


def get(name: str) -> MleBenchRecipe:
    """Return the recipe of `mlebench-<competition>`.

    Raises:
      TaskError: mlebench is not installed, has no such competition, or its leaderboard is missing.
    """
    identity = name.removeprefix(PREFIX)
    competition, leaderboard = open_competition(identity), read_leaderboard(identity)
    metric = re.sub(r"[^\w@. -]", " ", competition.grader.name).strip()[:40] or "score"
    lower = competition.grader.is_lower_better(leaderboard)
    spec = TaskSpec(
        name=name,
        kind=_kind(competition.public_dir),
        split="held_out",
        metric=metric,
        description=competition.description,
        traits=f"Kaggle competition {competition.name}",
        source=f"MLE-bench, {identity}. m_best is the gold medal's line of its leaderboard.",
        read_only=(),
        limits=LIMITS,
        direction="lower" if lower else "higher",
    )
    return MleBenchRecipe(spec, identity)


def open_competition(identity: str) -> Any:
    """Return MLE-bench's record of a competition, with data in MLEBENCH_DATA_DIR, else in its default folder.

    Raises:
      TaskError: mlebench is not installed, or has no such competition.
    """
    registry = _registry()
    known = registry.list_competition_ids()
    if identity not in known:
        near = difflib.get_close_matches(identity, known, n=1, cutoff=0.3)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        raise TaskError(f"MLE-bench has no competition {identity!r}{hint}")
    return registry.get_competition(identity)


def read_leaderboard(identity: str) -> pd.DataFrame:
    """Return the competition's private leaderboard, best score first.

    Raises:
      TaskError: the leaderboard is missing.
    """
    path = open_competition(identity).leaderboard
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise TaskError(f"the leaderboard {path} cannot be read: {error}") from error
    if "score" not in table or not len(table):
        raise TaskError(
            f"{path} is no leaderboard: if it is a Git LFS pointer, run `git lfs pull` where mle-bench was cloned, and "
            "install it from there"
        )
    return table


def _registry() -> Any:
    try:
        from mlebench.registry import registry
    except ImportError as error:
        raise TaskError(
            f"tasks {PREFIX}... need the package mlebench, which cannot be imported ({error}): {INSTALL}"
        ) from error
    folder = os.environ.get("MLEBENCH_DATA_DIR")
    return registry.set_data_dir(Path(folder).expanduser()) if folder else registry


def _kind(public: Path) -> str:
    """Guess the kind of task from its files; used only as a label in tables."""
    return "image" if any(path.suffix.lower() in _IMAGES for path in public.rglob("*")) else "tabular"


def _numbered(sample: bytes) -> bytes:
    """Return the sample as the script `_NUMBERED` changes it."""
    table = pd.read_csv(io.BytesIO(sample))
    for column in table.select_dtypes("number"):
        if table[column].nunique() == 1:
            table[column] = np.linspace(0, 1, len(table))
    return table.to_csv(index=False).encode()


def _id_column(answers: Any, sample: pd.DataFrame) -> str | None:
    """Return the column that names each hidden row once, in the answers and in submissions, or None."""
    if not isinstance(answers, pd.DataFrame):
        return None
    for name in sample:
        if name in answers and not answers[name].duplicated().any():
            ids, others = (list(map(str, table[name])) for table in (answers, sample))
            if len(others) == len(set(others)) and set(ids) == set(others):
                return name
    return None
