"""One line, in place of a traceback, when a program is started with a Python that lacks its libraries."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable

REMEDY = (
    "activate the environment that launch/quickstart.sh makes (. .venv/bin/activate), or pip install -c "
    "constraints.txt -e"
)


def check_installed(modules: Iterable[str], extras: str) -> None:
    """End a program, started by `python -m`, whose libraries are missing.

    Args:
      modules: Top-level modules that it imports.
      extras: What `pip install` takes to provide them, for example `.[cpu]`.
    """
    if sys.argv[:1] != ["-m"]:  # imported as a library: the importer handles its errors
        return
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"error: {sys.executable} has no {', '.join(missing)}: {REMEDY} '{extras}'")
