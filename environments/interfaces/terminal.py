"""Text for a terminal: control characters from scripts, models, tasks and records are shown, never interpreted."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace every character that a terminal would interpret, except line feeds and tabs."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
