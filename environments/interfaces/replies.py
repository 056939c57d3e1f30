"""Replies of an agent from outside: a JSON Lines file, or lines that a person types."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


class InputError(ValueError):
    """Unusable input of the user. The message says where and why."""


def read_actions(path: str) -> list[str]:
    """Read reply texts from a JSON Lines file, `-` for standard input."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--actions {path} cannot be read: {error}") from error
    actions = []
    # Only a newline ends a line: U+2028 may occur in a JSON string.
    for number, line in enumerate(io.StringIO(text.removeprefix("\ufeff")), start=1):
        if not line.strip():
            continue
        try:
            action = json.loads(line)["action"]
        except (ValueError, TypeError, KeyError):
            action = None
        if not isinstance(action, str):
            raise InputError(
                f'{path}, line {number}: a line is {{"action": "<raw reply text>"}}, this is {line[:80]!r}'
            )
        actions.append(action)
    if not actions:
        raise InputError(f'{path} has no actions: write a line {{"action": "<raw reply text>"}} a step')
    return actions


def read_replies(stream: TextIO) -> Iterator[str]:
    """Yield replies of several lines, each ended by a line with a single dot; the end of the stream ends the last."""
    lines: list[str] = []
    for line in stream:
        if line.strip() == ".":
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    if any(line.strip() for line in lines):
        yield "".join(lines)
