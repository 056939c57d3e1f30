"""Tasks that a config names: embedded ones, folders, entry points and suites first, then micro-tasks."""

from __future__ import annotations

import collections
import dataclasses

from environments import tasks
from environments.factory.suite import references
from environments.tasks.task import TaskError
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config

SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Place:
    """Origin of a task of the config."""

    name: str
    place: str
    """Name, path or entry point, as `tasks.prepare` reads it."""
    lazy: bool = False
    """Whether the task is prepared when it is first needed: the task is of a suite, which was checked when built."""
    table: str = ""
    """Table from which a suite's task was made; other tasks of it have other targets."""


def find(place: str) -> list[Place]:
    """Return the tasks that one entry of `config.tasks` names: a suite has many. A folder's name is in its task.yaml.

    Raises:
      TaskError: there is no such task or suite.
    """
    if place.startswith(references.PREFIX):
        return [Place(one.name, one.place, True, str(one.entry.get("table", ""))) for one in references.expand(place)]
    return [Place(tasks.get(place).spec.name, place)]


def listed(config: Config, split: str) -> list[Place]:
    """Return the tasks to train on (`train`) or never trained on (`held_out`).

    Raises:
      ConfigError: One cannot be had.
    """
    found: list[Place] = []
    for place in getattr(config.tasks, split):
        try:
            found += find(place)
        except TaskError as error:
            raise ConfigError(f"config.tasks.{split}: {error}") from error
    count = config.tasks.micro_train if split == "train" else config.tasks.micro_held_out
    return [*found, *(Place(name, name) for name in tasks.micro.names(split, count, config.tasks.seed))]


def names(config: Config, split: str) -> tuple[str, ...]:
    """Return the names of the tasks to train on (`train`) or never trained on (`held_out`)."""
    return tuple(place.name for place in listed(config, split))


def places(config: Config) -> dict[str, Place]:
    """Return every task's place by its name, training first.

    Raises:
      ConfigError: There is none, one cannot be had, one is named twice, or training and held-out tasks share a table.
    """
    train, held_out = (listed(config, split) for split in SPLITS)
    found = [*train, *held_out]
    if not found:
        raise ConfigError("config.tasks names no task: set config.tasks.train or config.tasks.micro_train")
    counts = collections.Counter(place.name for place in found)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise ConfigError(f"config.tasks names {twice[0]!r} twice: list each task once, in train or held_out")
    trained = {place.table: place.name for place in train if place.table}
    for place in held_out:
        if place.table in trained:
            raise ConfigError(
                f"config.tasks.held_out: {place.name!r} is of the table {place.table}, as {trained[place.table]!r} of "
                "config.tasks.train is, whose columns tell its hidden target: hold out all tasks of a table, or none"
            )
    return {place.name: place for place in found}
