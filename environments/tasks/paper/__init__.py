"""The 19 tasks of ML-Agent (arXiv 2505.23723), each a folder as docs/bring_your_own_task.md describes it.

Their data are others': `python -m environments fetch TASK` gets the archive of one, docs/paper_tasks.md tells of all.
The paper trains on those whose split is `train`, and calls the others held out.
"""

from __future__ import annotations

from pathlib import Path

from environments.tasks.folders.folder import FolderRecipe, read_folder

ROOT = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Names of the tasks, which are those of their folders."""
    return tuple(sorted(path.parent.name for path in ROOT.glob("*/task.yaml")))


def get(name: str) -> FolderRecipe:
    """The recipe of the task called `name`, which is one of `names()`."""
    return read_folder(ROOT / name)
