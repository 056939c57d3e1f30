"""Tasks and their grading. `get` looks up a recipe by name, `prepare` turns it into a folder for a seed.

Embedded tasks (`environments.tasks.generated.embedded`) have descriptive names. Any number of micro-tasks
(`environments.tasks.generated.micro`) are named `micro-<family>-<seed>`. The ML-Agent paper's
(`environments.tasks.paper`) have their Kaggle names, those of MLE-bench (`environments.tasks.adapters.mlebench`) are
`mlebench-<competition>`. Your own task (`environments.tasks.folders.folder`), or a folder of MLAgentBench
(`environments.tasks.adapters.mlagentbench`), is named by its path, or by the entry point of an installed package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import logging
from pathlib import Path

from environments.sandbox.base import Sandbox
from environments.tasks import paper
from environments.tasks.adapters import mlagentbench, mlebench
from environments.tasks.check import examination
from environments.tasks.folders import folder
from environments.tasks.generated import embedded, micro
from environments.tasks.generated.recipe import Recipe
from environments.tasks.prepared import FolderTask, open_task, prepare_task
from environments.tasks.task import InvalidSubmissionError, NoHeadroomError, PreparedTask, Task, TaskError, TaskSpec

__all__ = [
    "FolderTask",
    "InvalidSubmissionError",
    "NoHeadroomError",
    "PreparedTask",
    "Task",
    "TaskError",
    "TaskSpec",
    "get",
    "names",
    "open_task",
    "prepare",
]

OwnRecipe = folder.FolderRecipe | mlagentbench.BenchmarkRecipe
SPLITS = ("train", "held_out")
DRAWS = 5
_WARNINGS = 5
"""Maximum number of findings logged when a task is prepared."""
_log = logging.getLogger(__name__)


@functools.cache
def _embedded() -> dict[str, Task]:
    return embedded.recipes()


def names(split: str | None = None) -> tuple[str, ...]:
    """Return the names of the embedded tasks, of one split or of both.

    Raises:
      TaskError: there is no such split.
    """
    if split not in (None, *SPLITS):
        raise TaskError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    return tuple(name for name, task in _embedded().items() if split in (None, task.spec.split))


def get(name: str) -> Task:
    """Return the recipe called `name`: embedded, micro-task, the paper's, a task's folder, or an installed task.

    Raises:
      TaskError: there is none (the message names the closest), or a folder is invalid.
    """
    if name in _embedded():
        return _embedded()[name]
    if folder.is_folder(name):
        if mlagentbench.is_benchmark(Path(name)):
            return _own(mlagentbench.read_benchmark(Path(name)))
        return _own(folder.read_folder(Path(name)))
    if name in paper.names():
        return paper.get(name)
    if name in folder.installed():
        return _own(folder.read_installed(name))
    if name.startswith(micro.PREFIX):
        return micro.get(name)
    if name.startswith(mlebench.PREFIX):
        return mlebench.get(name)
    known = [
        *names(),
        *paper.names(),
        *folder.installed(),
        *(f"{micro.PREFIX}{family}-0" for split in SPLITS for family in micro.family_names(split)),
    ]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    if Path(name).is_dir():
        hint = f"; for the folder of this name write {f'./{name}'!r}"
    raise TaskError(f"no task is called {name!r}{hint} (`python -m environments list` lists them)")


def _own(recipe: OwnRecipe) -> OwnRecipe:
    """Check that `recipe`'s name is no other task's, and return the recipe."""
    name = recipe.spec.name
    if name in _embedded() or name.startswith(micro.PREFIX):
        raise TaskError(f"{recipe.folder}: its name is {name!r}, which an embedded task has; choose another")
    return recipe


def prepare(name: str, root: Path, seed: int, sandbox: Sandbox, warn: bool = True) -> FolderTask:
    """Build the task called `name` for `seed` under `root` and measure it in `sandbox`, or reuse an equal build.

    Public files of your own task are searched for its labels; with `warn` each finding is logged as a warning. A
    micro-task whose data leave no headroom is drawn again, up to `DRAWS` times.

    Raises:
      TaskError: there is no such task, or its own scripts fail or leave no headroom.
      SandboxError: the sandbox failed.
    """
    task = get(name)
    if not isinstance(task, Recipe):
        prepared = prepare_task(task, root, seed, sandbox)
        for finding in examination.warnings(prepared)[:_WARNINGS] if warn else ():
            _log.warning("task %s: %s (python -m environments check %s)", task.spec.name, finding, name)
        return prepared
    if not task.spec.name.startswith(micro.PREFIX):
        return prepare_task(task, root, seed, sandbox)
    for draw in range(DRAWS - 1):
        with contextlib.suppress(NoHeadroomError):
            return prepare_task(dataclasses.replace(task, draw=draw), root, seed, sandbox)
    return prepare_task(dataclasses.replace(task, draw=DRAWS - 1), root, seed, sandbox)
