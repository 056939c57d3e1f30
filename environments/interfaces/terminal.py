"""Text for a person's terminal: what scripts, models, tasks and records of others hold is shown, never obeyed."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace every character that a terminal would obey, but for line feeds and tabs."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
