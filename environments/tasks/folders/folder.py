"""Your own tasks: a folder that is read as a recipe, like the embedded ones (docs/bring_your_own_task.md).

    <folder>/
      task.yaml        name, kind, metric, submission ... (`fields.FIELDS`)
      description.md   the research problem, as the agent reads it
      env/             the agent's starting workspace
      prepare.py       prepare(raw, public, private, seed): writes public data, and private/answers.csv
      grade.py         grade(submission, answers) -> float, of two tables in the same order; not needed if the metric
                       is one of `grading.metrics`: answers.csv then has the ids 0, 1 ... and one column, the truth
      reference.py     optional: a good entry script, which gives m_best; else task.yaml states m_best
      raw/             optional: input of prepare.py, unless task.yaml says `archive`

A folder is named by its path, or by an installed entry point of the group `mlagent_jax.tasks`, whose object is the
folder's path.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from environments.actions.edits import read_cells
from environments.guest import tree
from environments.guest.transfer import MAX_ENTERING_BYTES
from environments.tasks.folders.archives import ArchiveError, Origin, data_dir
from environments.tasks.folders.bounded_yaml import read_text, read_yaml
from environments.tasks.folders.fields import Fields
from environments.tasks.grading import metrics
from environments.tasks.grading.halves import report_half
from environments.tasks.grading.own import HALF, OwnGrader, SubmissionForm, line_of, load_function, read_answers
from environments.tasks.grading.submissions import Answers
from environments.tasks.task import M_BEST, TaskError, TaskSpec

ENTRY_POINTS = "mlagent_jax.tasks"


@dataclasses.dataclass(frozen=True)
class FolderRecipe:
    """An `environments.tasks.task.Task` that is read from a folder."""

    spec: TaskSpec
    form: SubmissionForm
    m_best: float | None
    folder: Path
    origin: Origin | None = None
    """Source of the raw data, if they are not in the folder."""

    @property
    def raw(self) -> Path:
        """Input folder of prepare.py."""
        return self.folder / "raw" if self.origin is None else data_dir() / self.spec.name

    def build(self, directory: Path, seed: int) -> TaskSpec:
        """Write env/, public/ and private/ under `directory` (see `environments.tasks.task.Task`).

        Raises:
          ArchiveError: the raw data are missing or have changed; the message says how to get them.
          TaskError: prepare.py fails or writes wrong files.
        """
        if self.origin is not None:
            self.origin.require(self.raw)
        public, private = directory / "public", directory / "private"
        public.mkdir()
        private.mkdir(mode=0o700)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(self.folder / "env", directory / "env", symlinks=True, ignore=ignored)
        script = self.folder / "prepare.py"
        try:
            _call(script, "prepare", self.raw, public, private, seed)
        except ArchiveError as error:
            remedy = "" if self.origin is None else f". The archive of task {self.spec.name}: "
            raise ArchiveError(f"{error}{remedy}{self.origin.remedy(self.raw) if self.origin else ''}") from error
        if not any(public.iterdir()):
            raise TaskError(f"{script} wrote nothing into its folder `public`: the script would have no data")
        if not (public / "description.md").exists():
            (public / "description.md").write_text(f"# {self.spec.name}\n\n{self.spec.description}\n", encoding="utf-8")
        if (self.folder / "grade.py").is_file():
            shutil.copyfile(self.folder / "grade.py", private / "grade.py")
            self._grader(private, seed).save(private)
        else:
            self._answers(private, seed).save(private / "answers.npz")
            (private / "answers.csv").unlink()
        if self.m_best is None:
            shutil.copyfile(self.folder / "reference.py", private / "reference.py")
        else:
            (private / M_BEST).write_text(json.dumps(self.m_best), encoding="utf-8")
        return self.spec

    def _answers(self, private: Path, seed: int) -> Answers:
        """Return the answers for one of our metrics, from the answers.csv that prepare.py wrote."""
        grader, metric = self._grader(private, seed), metrics.get(self.spec.metric)
        ids = grader.cells[self.form.id_column]
        truths = [name for name in grader.cells if name != self.form.id_column]
        if list(ids) != [str(row) for row in range(len(ids))] or len(truths) != 1:
            raise TaskError(
                f"answers.csv of {self.folder} needs the ids 0, 1 ... in order and one other column, the truth"
            )
        truth = np.array(grader.cells[truths[0]], dtype=float)
        truth = truth.astype(np.int64) if metric.classification else truth
        classes = int(truth.max()) + 1 if metric.classification else 0
        answers = Answers(metric, classes, truth, grader.report)
        if answers.columns != tuple(self.form.columns):
            raise TaskError(f"{self.folder}: submission.columns must be {', '.join(answers.columns)} for {metric.name}")
        return answers

    def _grader(self, private: Path, seed: int) -> OwnGrader:
        path, name = private / "answers.csv", self.form.id_column
        if not path.is_file():
            raise TaskError(f"{self.folder / 'prepare.py'} wrote no answers.csv into its folder `private`")
        try:
            answers = read_answers(path, self.form)
        except TaskError as error:
            raise TaskError(f"{self.folder}: {error}") from error
        rows = len(answers[name])
        if HALF not in answers:
            report = report_half(rows, seed)
        elif set(answers[HALF]) == {"reward", "report"}:
            report = np.array(answers.pop(HALF)) == "report"
        else:
            raise TaskError(f"answers.csv of {self.folder}: column {HALF!r} must hold `reward` and `report`, both")
        if min(np.sum(report), np.sum(~report)) < 1:
            raise TaskError(f"answers.csv of {self.folder} has {rows} rows: each half needs some")
        return OwnGrader(self.form, answers, report, private / "grade.py")


def _call(path: Path, name: str, *arguments: Any) -> Any:
    """Call the function `name` of an author's file; errors name its failing line.

    Raises:
      TaskError: the function raises it, or anything else.
    """
    try:
        return load_function(path, name)(*arguments)
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{line_of(error, path)} raised {type(error).__name__}: {error}") from error


class FolderError(TaskError):
    """Errors in a task's folder, one line each in `mistakes`."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def is_folder(name: str) -> bool:
    """Check whether `name` is the path of a task's folder, or was meant as one."""
    return os.sep in name or (Path(name) / "task.yaml").is_file()


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the tasks of installed packages, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def read_installed(name: str) -> FolderRecipe:
    """Read the task of the entry point called `name`, which is one of `installed()`.

    Raises:
      TaskError: its object is not the path of a task's folder.
    """
    point = installed()[name]
    try:
        folder = Path(point.load())
    except (ImportError, AttributeError, TypeError) as error:
        raise TaskError(f"entry point {name} = {point.value} of {ENTRY_POINTS} gives no path: {error}") from error
    recipe = read_folder(folder)
    if recipe.spec.name != name:
        raise TaskError(f"entry point {name} leads to {folder}, whose task.yaml says name: {recipe.spec.name}")
    return recipe


def read_folder(folder: Path) -> FolderRecipe:
    """Read the task in `folder` without executing anything in it.

    Raises:
      FolderError: files are missing or fields of task.yaml are wrong; the message names them all.
      TaskError: task.yaml or another text cannot be read.
    """
    folder = Path(folder).resolve()
    reader = Fields(folder / "task.yaml", read_yaml(folder / "task.yaml"))
    spec, form = reader.spec(read_text(folder / "description.md")), reader.form()
    if problem := _env_problem(folder / "env", spec.read_only):
        reader.wrong("env", f"{folder}/env: {problem}")
    ours = metrics.METRICS.get(spec.metric)
    if ours is not None and spec.higher_is_better != ours.higher_is_better and not (folder / "grade.py").is_file():
        reader.wrong("metric.direction", f"{folder}: metric.direction is {spec.direction}, which {ours.name} has not")
    for name in (f"env/{spec.entry}", "prepare.py", *(() if ours is not None else ("grade.py",))):
        if not (folder / name).is_file():
            reader.wrong(name, f"{folder} has no {name}: docs/bring_your_own_task.md says what it holds")
    for name in ("data", spec.submission):
        if os.path.lexists(folder / "env" / name):
            reader.wrong(name, f"{folder}/env holds {name}: that name is for what comes later, so rename or delete it")
    if (folder / "env" / spec.entry).is_file():
        cells = read_cells(read_text(folder / "env" / spec.entry))
        spec = dataclasses.replace(spec, ideas=reader.ideas(cells))
    m_best, origin = reader.number("m_best"), reader.origin()
    if (m_best is None) != (folder / "reference.py").is_file():
        reader.wrong("m_best", f"{folder} needs either reference.py or m_best in task.yaml, and not both")
    if reader.mistakes:
        raise FolderError(reader.mistakes.values())
    return FolderRecipe(spec, form, m_best, folder, origin)


def _env_problem(env: Path, read_only: Sequence[str]) -> str:
    """Return why env/ cannot be a starting workspace, or an empty string. Follows, opens and reads nothing."""

    def left_out(path: str) -> bool:
        return path.rpartition("/")[2] == "__pycache__"

    def kept_elsewhere(path: str) -> bool:
        return left_out(path) or any(fnmatch.fnmatchcase(path, pattern) for pattern in read_only)

    entries, refused = tree.walk(str(env), left_out, tree.MAX_INODES, MAX_ENTERING_BYTES, MAX_ENTERING_BYTES)
    refused += tree.walk(str(env), kept_elsewhere)[1]
    nowhere = [entry.path for entry in entries if entry.kind == "l" and not (env / entry.path).exists()]
    return "; ".join([*dict.fromkeys(map(str, refused)), *(f"{path!r}: a link that leads nowhere" for path in nowhere)])
