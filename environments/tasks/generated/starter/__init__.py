"""What lies beside `train.py` in a workspace: `helper.py` and the `loading.py` of the task's kind, both read-only.

They are copied into `env/` as text and run inside the sandbox; nothing here is imported by the host.
"""

from __future__ import annotations

from pathlib import Path


def helper_text() -> str:
    """Text of helper.py."""
    return (Path(__file__).parent / "helper.py").read_text(encoding="utf-8")


def loading_text(kind: str) -> str:
    """Text of loading.py for a task of `kind`."""
    return (Path(__file__).parent / f"loading_{kind}.py").read_text(encoding="utf-8")
