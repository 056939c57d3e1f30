"""Text and YAML files of a task's folder, read in bounded time and memory even if hostile.

Keys are texts as written: `no`, `0` and `1.10` are names here, not False, 0 and 1.1.
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
"""Maximum size of a text file: task.yaml, description.md, a starting script."""
MAX_DEPTH = 20
"""Maximum nesting of lists and mappings."""


def read_text(path: Path) -> str:
    """Read a regular file as text; symbolic links are followed.

    Raises:
      TaskError: it is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        return read_regular(path.resolve(), MAX_BYTES).decode().strip()
    except (HostileFileError, UnicodeDecodeError, OSError, RuntimeError) as error:  # RuntimeError: a cycle of links.
        raise TaskError(f"{path} cannot be read: {error}; docs/bring_your_own_task.md says what it holds") from error


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
      TaskError: it cannot be read, is not YAML, or has an alias, a duplicate key, or a value nested too deep.
    """
    text = read_text(path)
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except Exception as error:  # Such as 2024-13-01, `!!bool x`, half of a surrogate pair.
        raise TaskError(f"{path} is not YAML that is read here: {error}") from error
    return value


def hint(value: Any) -> str:
    """Return a hint for an error message if `value` was probably meant as text, else an empty string."""
    if isinstance(value, bool | int | float | datetime.date):
        return " (YAML reads that as no text: write it in quotes)"
    return ""


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which let a short text stand for a huge value; keys are texts, each at most once."""

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
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a text", problem_mark=key.start_mark)
            if key.value in mapping:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            mapping[key.value] = self.construct_object(value, deep=deep)
        return mapping
