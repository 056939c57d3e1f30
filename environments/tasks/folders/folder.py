"""Tasks of your own: a folder that is read as a recipe, like the embedded ones (docs/bring_your_own_task.md).

    <folder>/
      task.yaml        name, kind, metric, submission ... (`FIELDS`)
      description.md   the research problem, as the agent reads it
      env/             the workspace the agent starts from
      prepare.py       prepare(raw, public, private, seed): writes public data, and private/answers.csv
      grade.py         grade(submission, answers) -> float, of two tables in the same order
      reference.py     optional: a good entry script, which gives m_best; else task.yaml states m_best
      raw/             optional: what prepare.py reads, unless task.yaml says `archive`

A folder is found by its path, or by the name of an installed entry point of the group `mlagent_jax.tasks`, whose
object is the folder's path.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from environments.actions.edits import read_cells
from environments.protocol import Limits
from environments.tasks.folders.archives import ORIGINS, ArchiveError, Origin, data_dir
from environments.tasks.generated.dataset import report_half
from environments.tasks.grading.own import (
    CELLS,
    HALF,
    OwnGrader,
    SubmissionForm,
    call,
    load_function,
    read_answers,
)
from environments.tasks.task import M_BEST, OwnIdea, TaskError, TaskSpec

ENTRY_POINTS = "mlagent_jax.tasks"
KINDS = ("tabular", "image", "text", "time_series", "graph")
FIELDS = {
    "name": "small letters, digits, `.`, `_` and `-`: it names files",
    "kind": f"one of {', '.join(KINDS)}",
    "split": "train (default) or held_out",
    "metric": "name: as you like; direction: higher or lower, which of them is better",
    "submission": "columns: kind of cell by name (number, integer, probability, text); "
    "file: default submission.csv; id: column of the ids, default id",
    "traits": "one line about the data for compact prompts; default: the kind",
    "source": "where the data are from",
    "archive": f"where the raw data are from, one of {', '.join(ORIGINS)} with its name, for example "
    "kaggle: titanic; prepare.py then reads the folder <MLAGENT_DATA_DIR>/<name>",
    "entry": "the script that is run and scored, default train.py",
    "read_only": "list of globs in env/ that are not the agent's to change, default none",
    "limits": f"of one execution: {', '.join(field.name for field in dataclasses.fields(Limits))}",
    "hidden": "columns of answers.csv that nothing public may show, default all but the ids",
    "gpus": "how many of the worker's GPUs an execution gets, default none",
    "ideas": "list of candidate edits, each with text (a few words), cell (of the entry script) and code",
    "m_best": "score of a good solution on the hidden labels, where there is no reference.py",
}
"""What task.yaml may hold."""
_REQUIRED = ("name", "kind", "metric", "submission")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_IDEA = re.compile(r"\S[^\n;]{0,99}")
"""A semicolon parts ideas in compact prompts."""


@dataclasses.dataclass(frozen=True)
class FolderRecipe:
    """An `environments.tasks.task.Task` that is read from a folder."""

    spec: TaskSpec
    form: SubmissionForm
    m_best: float | None
    folder: Path
    origin: Origin | None = None
    """Who gives the raw data out, where they are not in the folder."""

    @property
    def raw(self) -> Path:
        """What prepare.py reads."""
        return self.folder / "raw" if self.origin is None else data_dir() / self.spec.name

    def build(self, directory: Path, seed: int) -> TaskSpec:
        """Write env/, public/ and private/ under `directory` (see `environments.tasks.task.Task`).

        Raises:
          ArchiveError: the raw data are not there or have changed; the message says how to get them.
          TaskError: prepare.py fails or writes something else than was agreed.
        """
        if self.origin is not None:
            self.origin.require(self.raw)
        public, private = directory / "public", directory / "private"
        public.mkdir()
        private.mkdir(mode=0o700)
        shutil.copytree(self.folder / "env", directory / "env", ignore=shutil.ignore_patterns("__pycache__"))
        script = self.folder / "prepare.py"
        try:
            call(script, load_function(script, "prepare"), self.raw, public, private, seed)
        except ArchiveError as error:
            remedy = "" if self.origin is None else f". The archive of task {self.spec.name}: "
            raise ArchiveError(f"{error}{remedy}{self.origin.remedy(self.raw) if self.origin else ''}") from error
        if not any(public.iterdir()):
            raise TaskError(f"{script} wrote nothing into its folder `public`: the script would have no data")
        if not (public / "description.md").exists():
            (public / "description.md").write_text(f"# {self.spec.name}\n\n{self.spec.description}\n", encoding="utf-8")
        shutil.copyfile(self.folder / "grade.py", private / "grade.py")
        self._grader(private, seed).save(private)
        if self.m_best is None:
            shutil.copyfile(self.folder / "reference.py", private / "reference.py")
        else:
            (private / M_BEST).write_text(json.dumps(self.m_best), encoding="utf-8")
        return self.spec

    def _grader(self, private: Path, seed: int) -> OwnGrader:
        path, name = private / "answers.csv", self.form.id_column
        if not path.is_file():
            raise TaskError(f"{self.folder / 'prepare.py'} wrote no answers.csv into its folder `private`")
        try:
            answers = read_answers(path, name)
        except ValueError as error:
            raise TaskError(f"answers.csv of {self.folder} cannot be read as a table: {error}") from error
        for column in (name, *self.form.hidden):
            if column not in answers:
                raise TaskError(f"answers.csv of {self.folder} has no column {column!r}; it has {', '.join(answers)}")
        ids = answers[name]
        if ids.isna().any() or ids.duplicated().any():
            raise TaskError(f"answers.csv of {self.folder}: the ids ({name}) must be there and different in every row")
        if HALF not in answers:
            report = report_half(len(answers), seed)
        elif set(answers[HALF]) == {"reward", "report"}:
            report = (answers.pop(HALF) == "report").to_numpy()
        else:
            raise TaskError(f"answers.csv of {self.folder}: column {HALF!r} must hold `reward` and `report`, both")
        if min(np.sum(report), np.sum(~report)) < 1:
            raise TaskError(f"answers.csv of {self.folder} has {len(answers)} rows: each half needs some")
        return OwnGrader(self.form, answers, report, private / "grade.py")


class FolderError(TaskError):
    """What is wrong with a task's folder, a line each in `mistakes`."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def is_folder(name: str) -> bool:
    """Whether `name` is the path of a task's folder, or was meant as one."""
    return os.sep in name or (Path(name) / "task.yaml").is_file()


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """The tasks that installed packages bring, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def read_installed(name: str) -> FolderRecipe:
    """The task of the entry point called `name`, which is one of `installed()`.

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
    """The task in `folder`; nothing in it is executed.

    Raises:
      FolderError: files are missing or fields of task.yaml are wrong, all of which it names.
      TaskError: task.yaml or another text cannot be read at all.
    """
    folder = Path(folder).resolve()
    text = _text(folder / "task.yaml")
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TaskError(f"{folder / 'task.yaml'} is not YAML: {error}") from error
    reader = _Fields(folder / "task.yaml", fields)
    spec, form = reader.spec(_text(folder / "description.md")), reader.form()
    for name in (f"env/{spec.entry}", "prepare.py", "grade.py"):
        if not (folder / name).is_file():
            reader.wrong(name, f"{folder} has no {name}: docs/bring_your_own_task.md says what it holds")
    for name in ("data", spec.submission):
        if os.path.lexists(folder / "env" / name):
            reader.wrong(name, f"{folder}/env holds {name}: that name is for what comes later, so rename or delete it")
    if (folder / "env" / spec.entry).is_file():
        cells = read_cells(_text(folder / "env" / spec.entry))
        spec = dataclasses.replace(spec, ideas=reader.ideas(cells))
    m_best, origin = reader.number("m_best"), reader.origin()
    if (m_best is None) != (folder / "reference.py").is_file():
        reader.wrong("m_best", f"{folder} needs either reference.py or m_best in task.yaml, and not both")
    if reader.mistakes:
        raise FolderError(reader.mistakes.values())
    return FolderRecipe(spec, form, m_best, folder, origin)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read: {error}; docs/bring_your_own_task.md says what it holds") from error


class _Fields:
    """The fields of a task.yaml, checked as they are taken. What is wrong is in `mistakes`, by the name of the field;
    what was taken is worth nothing then."""

    def __init__(self, path: Path, fields: Any) -> None:
        self.mistakes: dict[str, str] = {}
        self._path = path
        self._fields = self._mapping(fields, "the file", FIELDS)
        for name in _REQUIRED:
            if name not in self._fields:
                self._wrong(name, "missing", FIELDS[name])

    def wrong(self, name: str, message: str) -> None:
        """Note a mistake, unless what it is a part of is noted already."""
        if not any(name == noted or name.startswith((f"{noted}.", f"{noted}[")) for noted in self.mistakes):
            self.mistakes[name] = message

    def spec(self, description: str) -> TaskSpec:
        if not description:
            path = self._path.parent / "description.md"
            self.wrong("description.md", f"{path} is empty: it is what the agent reads")
        kind = self._choice("kind", self._fields.get("kind"), KINDS)
        metric = self._mapping(self._fields.get("metric"), "metric", ("name", "direction"))
        return TaskSpec(
            name=self._choice("name", self._fields.get("name"), _NAME),
            kind=kind,
            split=self._choice("split", self._fields.get("split", "train"), ("train", "held_out")),
            metric=self._choice("metric.name", metric.get("name"), re.compile(r"\w[\w@. -]{0,39}")),
            description=description,
            traits=self._line("traits", str(kind).replace("_", " ")),
            source=self._line("source", "Given with the task."),
            entry=self._file("entry", self._fields.get("entry", "train.py")),
            submission=self._file("submission.file", self._submission.get("file", "submission.csv")),
            read_only=self._read_only(),
            limits=self._limits(),
            gpus=self._gpus(),
            direction=self._choice("metric.direction", metric.get("direction"), ("higher", "lower")),
        )

    def form(self) -> SubmissionForm:
        columns = self._mapping(self._submission.get("columns"), "submission.columns", None)
        for column, kind in columns.items():
            self._choice(f"submission.columns.{column}", kind, tuple(CELLS))
        if not columns:
            self._wrong("submission.columns", columns, "a list")
        hidden = self._list("hidden", "a list")
        return SubmissionForm(self._name("submission.id", self._submission.get("id", "id")), columns, tuple(hidden))

    def ideas(self, cells: Collection[str]) -> tuple[OwnIdea, ...]:
        """The task's own, for an entry script with these cells."""
        given = self._list("ideas", "a list")
        if given and not cells:
            self._wrong("ideas", given, "none: the entry script has no cells (`# %% model`)")
        return tuple(self._idea(f"ideas[{number}]", idea, tuple(cells)) for number, idea in enumerate(given))

    def _idea(self, name: str, given: Any, cells: tuple[str, ...]) -> OwnIdea:
        idea = self._mapping(given, name, [field.name for field in dataclasses.fields(OwnIdea)])
        text = self._choice(f"{name}.text", idea.get("text"), _IDEA)
        code = self._name(f"{name}.code", idea.get("code")).strip("\n")
        try:
            compile(code, f"{name}.code", "exec")
        except (SyntaxError, ValueError) as error:
            self._wrong(f"{name}.code", code, f"Python ({error})")
        return OwnIdea(text, self._choice(f"{name}.cell", idea.get("cell"), cells), code)

    def number(self, name: str) -> float | None:
        value = self._fields.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            self._wrong(name, value, "a number")
            value = 0
        return None if value is None else float(value)

    def origin(self) -> Origin | None:
        if "archive" not in self._fields:
            return None
        given = self._mapping(self._fields["archive"], "archive", ORIGINS)
        if len(given) != 1:
            self._wrong("archive", given, f"one of {', '.join(ORIGINS)} with its name")
            return None
        ((kind, name),) = given.items()
        return Origin(kind, self._name(f"archive.{kind}", name).strip())

    @property
    def _submission(self) -> dict[str, Any]:
        return self._mapping(self._fields.get("submission"), "submission", ("columns", "file", "id"))

    def _limits(self) -> Limits:
        given = self._mapping(self._fields.get("limits", {}), "limits", Limits().to_dict())
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                self._wrong(f"limits.{name}", value, "a number above 0")
        return Limits(**given)

    def _gpus(self) -> int:
        gpus = self._fields.get("gpus", 0)
        if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0:
            self._wrong("gpus", gpus, "a number from 0")
        return gpus

    def _read_only(self) -> tuple[str, ...]:
        return tuple(self._file("read_only", glob) for glob in self._list("read_only", "a list of globs"))

    def _list(self, name: str, expected: str) -> list[Any]:
        value = self._fields.get(name, [])
        if not isinstance(value, list):
            self._wrong(name, value, expected)
            return []
        return value

    def _line(self, name: str, default: str) -> str:
        return " ".join(self._name(name, self._fields.get(name, default)).split())

    def _name(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            self._wrong(name, value, "a text")
            return ""
        return value

    def _file(self, name: str, value: Any) -> str:
        path = PurePosixPath(self._name(name, value))
        if path.is_absolute() or ".." in path.parts or path.parts[:1] == ("data",):
            self._wrong(name, value, "a path inside env/")
        return str(path)

    def _choice(self, name: str, value: Any, allowed: tuple[str, ...] | re.Pattern[str]) -> str:
        if isinstance(allowed, tuple):
            if value not in allowed:
                self._wrong(name, value, f"one of {', '.join(allowed)}")
        elif not isinstance(value, str) or not allowed.fullmatch(value):
            self._wrong(name, value, f"a text like {allowed.pattern}")
        return value

    def _mapping(self, value: Any, name: str, allowed: Any) -> dict[str, Any]:
        """`value`, which must be a mapping from texts, without other fields than `allowed` (None: any)."""
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self._wrong(name, value, "fields with values")
            return {}
        for key in value if allowed is not None else ():
            if key not in allowed:
                near = difflib.get_close_matches(key, list(allowed), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                there = f"(there are {', '.join(allowed)})"
                self.wrong(f"{name}: {key}", f"{self._path}: {name} has no field {key!r}{hint} {there}")
        return {key: item for key, item in value.items() if allowed is None or key in allowed}

    def _wrong(self, name: str, value: Any, expected: str) -> None:
        self.wrong(name, f"{self._path}: {name} is {value!r}, expected {expected}")
