"""The tasks of a run: those that the config names, prepared at the start or, of suites, when they are first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from environments import tasks
from environments.sandbox.base import Sandbox
from environments.tasks.task import PreparedTask, TaskSpec
from mlagent_jax.runs.named_tasks import Place


class RunTasks(Mapping[str, PreparedTask]):
    """Tasks by name, in the order of the config. A task that is not prepared yet is prepared by the look-up."""

    def __init__(self, folder: Path, seed: int, sandbox: Callable[[], Sandbox]) -> None:
        """Create the mapping without tasks.

        Args:
          folder: folder of prepared tasks.
          seed: seed of the tasks' data.
          sandbox: returns the sandbox in which tasks are measured.
        """
        self._folder, self._seed, self._sandbox = folder, seed, sandbox
        self._places: dict[str, Place] = {}
        self._prepared: dict[str, PreparedTask] = {}
        self._lock = threading.Lock()

    def add(self, place: Place) -> None:
        """Add a task without preparing it."""
        self._places[place.name] = place

    def __getitem__(self, name: str) -> PreparedTask:
        """Return the prepared task called `name`.

        Raises:
          KeyError: the run has no such task.
          TaskError: it cannot be prepared.
        """
        place = self._places[name]
        with self._lock:
            if name not in self._prepared:
                self._prepared[name] = tasks.prepare(
                    place.place, self._folder, self._seed, self._sandbox(), warn=not place.lazy
                )
            return self._prepared[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class RunSpecs(Mapping[str, TaskSpec]):
    """Specs by the key `name@digest`; the keys of a suite's tasks are known once the tasks are prepared."""

    def __init__(self, run_tasks: RunTasks) -> None:
        self._tasks = run_tasks

    def __getitem__(self, key: str) -> TaskSpec:
        """Return the spec of a task.

        Raises:
          KeyError: the run has no such task.
          TaskError: it cannot be prepared.
        """
        task = self._tasks[key.rpartition("@")[0]]
        if task.key != key:
            raise KeyError(key)
        return task.spec

    def __iter__(self) -> Iterator[str]:
        return (task.key for task in self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)
