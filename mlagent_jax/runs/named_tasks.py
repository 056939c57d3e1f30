"""Tasks that a config names: embedded ones, folders and entry points first, then micro-tasks."""

from __future__ import annotations

from environments import tasks
from environments.tasks.task import TaskError
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config

SPLITS = ("train", "held_out")


def listed(config: Config, split: str) -> list[tuple[str, str]]:
    """Return (name, name in the config) of each task that the config lists; a folder's name is in its task.yaml.

    Raises:
      ConfigError: One cannot be had.
    """
    named = []
    for place in getattr(config.tasks, split):
        try:
            named.append((tasks.get(place).spec.name, place))
        except TaskError as error:
            raise ConfigError(f"config.tasks.{split}: {error}") from error
    return named


def names(config: Config, split: str) -> tuple[str, ...]:
    """Return the names of the tasks to train on (`train`) or never trained on (`held_out`)."""
    count = config.tasks.micro_train if split == "train" else config.tasks.micro_held_out
    return (*(name for name, _ in listed(config, split)), *tasks.micro.names(split, count, config.seed))


def places(config: Config) -> dict[str, str]:
    """Return every task's name with the name in the config that leads to it, training first.

    Raises:
      ConfigError: There is none, one cannot be had, or one is named twice.
    """
    found = [name for split in SPLITS for name in names(config, split)]
    if not found:
        raise ConfigError("config.tasks names no task: set config.tasks.train or config.tasks.micro_train")
    if twice := sorted(name for name in set(found) if found.count(name) > 1):
        raise ConfigError(f"config.tasks names {twice[0]!r} twice: list each task once, in train or held_out")
    folders = dict(listed(config, "train") + listed(config, "held_out"))
    return {name: folders.get(name, name) for name in found}
