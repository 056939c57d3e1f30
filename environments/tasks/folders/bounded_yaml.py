"""Text and YAML files of a task's folder, read in bounded time and memory, whoever wrote them.

Keys are texts as they are written: `no`, `0` and `1.10` are names here, not False, 0 and 1.1.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import yaml

from environments.files.hostile import HostileFileError, read_regular
from environments.tasks.task import TaskError

MAX_BYTES = 1 << 20
"""Size of a text file: task.yaml, description.md, a starting script."""
MAX_DEPTH = 20
"""Lists and mappings in each other."""


def read_text(path: Path) -> str:
    """Text of an ordinary file, which a symbolic link may lead to.

    Raises:
      TaskError: it is missing, no ordinary file, too large, or not UTF-8.
    """
    try:
        return read_regular(path.resolve(), MAX_BYTES).decode().strip()
    except (HostileFileError, UnicodeDecodeError, OSError, RuntimeError) as error:  # RuntimeError: links in a circle.
        raise TaskError(f"{path} cannot be read: {error}; docs/bring_your_own_task.md says what it holds") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
      TaskError: it cannot be read, is not YAML, or has an alias, a key twice, or a value too deep in others.
    """
    text = read_text(path)
    try:
        found = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        json.dumps(found, ensure_ascii=False, default=str).encode()
    except Exception as error:  # Such as 2024-13-01, `!!bool x`, half of a surrogate pair.
        raise TaskError(f"{path} is not YAML that is read here: {error}") from error
    return found


def hint(value: Any) -> str:
    """Why a value that was meant as a text may not be one, for an error; empty for others."""
    if isinstance(value, bool | int | float | datetime.date):
        return " (YAML reads that as no text: write it in quotes)"
    return ""


class _Loader(yaml.SafeLoader):
    """Without what lets a short text stand for a huge value; keys are texts, each at most once."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            problem = f"lists and mappings are more than {MAX_DEPTH} deep in each other"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a text", problem_mark=key.start_mark)
            if key.value in found:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            found[key.value] = self.construct_object(value, deep=deep)
        return found
