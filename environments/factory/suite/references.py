"""References to a suite's tasks: an index that is read in a moment, however many tasks there are.

suite:DIR            all tasks of the suite in DIR
suite:DIR#PATTERN    those whose name, or kind:, metric: or table: field, matches a glob: `suite:DIR#kind:text`
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
from pathlib import Path
from typing import Any

from environments.tasks.generated import micro
from environments.tasks.task import TaskError

INDEX = "suite.jsonl"
TASKS = "tasks"
PREFIX = "suite:"
_FIELDS = ("kind", "metric", "table", "split")


@dataclasses.dataclass(frozen=True)
class Reference:
    """One task of a suite."""

    name: str
    place: str
    """Argument of `tasks.get`: the task's folder, or the name of a task that exists without the suite."""
    entry: dict[str, Any]


def read_suite(out: Path) -> list[Reference]:
    """Read the index of the suite in `out`.

    Raises:
      TaskError: there is none, or a line is broken.
    """
    path = out / INDEX
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        return [Reference(entry["name"], _place(out, entry), entry) for entry in entries]
    except OSError as error:
        raise TaskError(
            f"{out} holds no suite ({INDEX}): make one with `python -m environments build-suite`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{path} is broken ({error}): build the suite again") from error


def _place(out: Path, entry: dict[str, Any]) -> str:
    name = entry["name"]
    if isinstance(name, str) and entry.get("place") == name and name.startswith(micro.PREFIX):
        return name
    if not isinstance(name, str) or "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no task's name")
    return f"{out / TASKS / name}/"


def expand(reference: str) -> list[Reference]:
    """Return the tasks that `suite:DIR` or `suite:DIR#PATTERN` names, in the order of the index.

    Raises:
      TaskError: there is no such suite, or nothing matches.
    """
    folder, _, pattern = reference.removeprefix(PREFIX).partition("#")
    suite = read_suite(Path(folder))
    if not pattern:
        return suite
    field, colon, glob = pattern.partition(":")
    if colon and field not in _FIELDS:
        near = difflib.get_close_matches(field, _FIELDS, n=1)
        raise TaskError(f"{reference}: there is no field {field!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    found = [
        one for one in suite if fnmatch.fnmatchcase(one.entry.get(field, "") if colon else one.name, glob or pattern)
    ]
    if not found:
        raise TaskError(f"{reference} matches none of the suite's {len(suite)} tasks")
    return found
