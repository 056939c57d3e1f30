"""Tasks: what to solve and how it is graded. `get` finds a recipe by name, `prepare` makes it a folder for a seed.

Embedded tasks (`environments.tasks.generated.embedded`) are named in words; micro-tasks
(`environments.tasks.generated.micro`) are named `micro-<family>-<seed>`, and there are as many as one likes. The
ML-Agent paper's (`environments.tasks.paper`) are named as Kaggle names them, those of MLE-bench
(`environments.tasks.adapters.mlebench`) `mlebench-<competition>`. A task of one's own
(`environments.tasks.folders.folder`), or a folder of MLAgentBench (`environments.tasks.adapters.mlagentbench`), is
named by its path, or by the entry point of the package that brings it.
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
"""Places that are named when a task is prepared."""
_log = logging.getLogger(__name__)


@functools.cache
def _embedded() -> dict[str, Task]:
    return embedded.recipes()


def names(split: str | None = None) -> tuple[str, ...]:
    """Names of the embedded tasks, of one split or of both.

    Raises:
      TaskError: there is no such split.
    """
    if split not in (None, *SPLITS):
        raise TaskError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    return tuple(name for name, task in _embedded().items() if split in (None, task.spec.split))


def get(name: str) -> Task:
    """The recipe of an embedded task, of a micro-task, of the paper's, of the task in the folder `name`, or of an
    installed one.

    Raises:
      TaskError: there is none, and the message names the nearest; or a folder is not what it should be.
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
    """`recipe`, whose name is its own."""
    name = recipe.spec.name
    if name in _embedded() or name.startswith(micro.PREFIX):
        raise TaskError(f"{recipe.folder}: its name is {name!r}, which an embedded task has; choose another")
    return recipe


def prepare(name: str, root: Path, seed: int, sandbox: Sandbox, warn: bool = True) -> FolderTask:
    """The task called `name`, built for `seed` under `root` and measured in `sandbox`; reused where it is there.

    Public files of a task of one's own are searched for its labels, and with `warn` a warning is logged of each place.
    A micro-task whose data happen to leave no headroom is drawn again, up to `DRAWS` times.

    Raises:
      TaskError: there is no such task, or its own scripts fail or leave no headroom.
      SandboxError: the sandbox failed.
    """
    task = get(name)
    if not isinstance(task, Recipe):
        prepared = prepare_task(task, root, seed, sandbox)
        for found in examination.warnings(prepared)[:_WARNINGS] if warn else ():
            _log.warning("task %s: %s (python -m environments check %s)", task.spec.name, found, name)
        return prepared
    if not task.spec.name.startswith(micro.PREFIX):
        return prepare_task(task, root, seed, sandbox)
    for draw in range(DRAWS - 1):
        with contextlib.suppress(NoHeadroomError):
            return prepare_task(dataclasses.replace(task, draw=draw), root, seed, sandbox)
    return prepare_task(dataclasses.replace(task, draw=DRAWS - 1), root, seed, sandbox)
