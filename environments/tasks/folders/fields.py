"""The fields of a task.yaml and their checks."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from environments.protocol import LIMIT_RANGES, Limits, limit_problem
from environments.tasks.folders.archives import ORIGINS, Origin
from environments.tasks.folders.bounded_yaml import hint
from environments.tasks.grading.own import HALF, SubmissionForm
from environments.tasks.grading.tables import KINDS as CELLS
from environments.tasks.grading.tables import LARGEST
from environments.tasks.task import OwnIdea, TaskSpec

KINDS = ("tabular", "image", "text", "time_series", "graph")
FIELDS = {
    "name": "small letters, digits, `.`, `_` and `-`: it names files",
    "kind": f"one of {', '.join(KINDS)}",
    "split": "train (default) or held_out",
    "metric": "name: as you like; direction: higher or lower, which of them is better",
    "submission": "columns: kind of cell by name (number, integer, probability, text); "
    "file: default submission.csv; id: column of the ids, default id",
    "answers": "kind of cell by name, of the columns of answers.csv that a submission does not have",
    "traits": "one line about the data for compact prompts; default: the kind",
    "source": "where the data are from",
    "archive": f"where the raw data are from, one of {', '.join(ORIGINS)} with its name, for example "
    "kaggle: titanic; prepare.py then reads the folder <MLAGENT_DATA_DIR>/<name>",
    "entry": "the script that is run and scored, default train.py",
    "read_only": "list of globs in env/ that are not the agent's to change, default none",
    "limits": f"of one execution: {', '.join(LIMIT_RANGES)}",
    "hidden": "columns of answers.csv that nothing public may show, default all but the ids",
    "gpus": "how many of the worker's GPUs an execution gets, default none",
    "ideas": "list of candidate edits, each with text (a few words), cell (of the entry script) and code",
    "m_best": "score of a good solution on the hidden labels, where there is no reference.py",
}
"""Fields of task.yaml."""
_REQUIRED = ("name", "kind", "metric", "submission")
_MOST_GPUS = 64


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Required form of a text."""

    pattern: re.Pattern[str]
    what: str


_NAME = Pattern(re.compile(r"[a-z0-9][a-z0-9._-]{0,63}"), "up to 64 small letters, digits, `.`, `_` and `-`")
_METRIC = Pattern(re.compile(r"\w[^\x00-\x1f\x7f;<>&]{0,39}"), "up to 40 letters in one line, without ; < > &")
_IDEA = Pattern(re.compile(r"\S[^\n;]{0,99}"), "up to 100 letters in one line, without semicolons")
"""Form of an idea. A semicolon separates ideas in compact prompts."""


class Fields:
    """The fields of a task.yaml, checked as they are read.

    `mistakes` holds the errors, by field name. If there are any, the values read are meaningless.
    """

    def __init__(self, path: Path, fields: Any) -> None:
        self.mistakes: dict[str, str] = {}
        self._path = path
        self._fields = self._mapping(fields, "the file", FIELDS)
        for name in _REQUIRED:
            if name not in self._fields:
                self._wrong(name, "missing", FIELDS[name])

    def wrong(self, name: str, message: str) -> None:
        """Record a mistake, unless one of the enclosing field is recorded already."""
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
            metric=self._choice("metric.name", metric.get("name"), _METRIC),
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
        columns = self._columns("submission.columns", self._submission.get("columns"))
        if not columns:
            self._wrong("submission.columns", columns, "the kind of cell by column, for example {price: number}")
        answers = self._columns("answers", self._fields.get("answers", {}))
        hidden = tuple(self._name("hidden", name) for name in self._list("hidden", "a list of columns"))
        id_column = self._name("submission.id", self._submission.get("id", "id"))
        for name in {id_column, HALF} & {*columns, *answers}:
            use = "the ids" if name == id_column else "the halves of answers.csv"
            self.wrong(f"column {name}", f"{self._path}: the column {name!r} is that of {use}; call yours otherwise")
        return SubmissionForm(id_column, columns, hidden, answers)

    def _columns(self, name: str, given: Any) -> dict[str, str]:
        columns = self._mapping(given, name, None)
        for column, kind in columns.items():
            self._choice(f"{name}.{column}", kind, tuple(CELLS))
        return columns

    def ideas(self, cells: Collection[str]) -> tuple[OwnIdea, ...]:
        """Return the task's own ideas, for an entry script with these cells."""
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
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # The last two: nested too deep.
            self._wrong(f"{name}.code", code, f"Python ({error})")
        return OwnIdea(text, self._choice(f"{name}.cell", idea.get("cell"), cells), code)

    def number(self, name: str) -> float | None:
        value = self._fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
            self._wrong(name, value, f"a number up to {LARGEST:g}")
            return 0.0
        return float(value)

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
        given = self._mapping(self._fields.get("limits", {}), "limits", LIMIT_RANGES)
        for name, value in given.items():
            if expected := limit_problem(name, value):
                self._wrong(f"limits.{name}", value, expected)
        return Limits(**given)

    def _gpus(self) -> int:
        gpus = self._fields.get("gpus", 0)
        if isinstance(gpus, bool) or not isinstance(gpus, int) or not 0 <= gpus <= _MOST_GPUS:
            self._wrong("gpus", gpus, f"a number from 0 to {_MOST_GPUS}")
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
            self._wrong(name, value, f"a text{hint(value)}")
            return ""
        return value

    def _file(self, name: str, value: Any) -> str:
        path = PurePosixPath(self._name(name, value))
        if "\0" in str(path) or path.is_absolute() or ".." in path.parts or path.parts[:1] == ("data",):
            self._wrong(name, value, "a path inside env/")
        return str(path)

    def _choice(self, name: str, value: Any, allowed: tuple[str, ...] | Pattern) -> str:
        if isinstance(allowed, tuple):
            if value not in allowed:
                self._wrong(name, value, f"one of {', '.join(allowed)}")
        elif not isinstance(value, str) or not allowed.pattern.fullmatch(value):
            self._wrong(name, value, f"{allowed.what}{hint(value)}")
        return value

    def _mapping(self, value: Any, name: str, allowed: Any) -> dict[str, Any]:
        """Return `value`, which must be a mapping, with only the fields in `allowed` (None: any)."""
        if not isinstance(value, dict):
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
        self.wrong(name, f"{self._path}: {name} is {_short(value)}, expected {expected}")


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # An integer with more digits than Python prints.
        return "a huge number"
    return text if len(text) <= 100 else f"{text[:100]}..."
