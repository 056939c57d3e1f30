"""Batches on file: what an iteration is to train on, written before it does, and trained on again without sampling.

A batch is JSON Lines, one row an action: what was sampled (`SampledAction`), its job, outcome, reward, group and policy
version. `diverged.jsonl`, which a run that diverges leaves, is one, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

from etils import epath

from environments.protocol import Job, Outcome, State
from mlagent_jax.agents.actor import SampledAction
from mlagent_jax.rl.in_flight import TrainingRow
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import ConfigError


def batch_path(folder: epath.Path, iteration: int) -> epath.Path:
    """The file of the batch that the iteration of this index trains on; files count from 1."""
    return folder / f"{iteration + 1:05d}.jsonl"


def write_batch(path: epath.Path, taken: Sequence[TrainingRow]) -> None:
    """Write a batch, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = ("reward", "group", "version")
    jsonl.replace(
        path,
        [
            dataclasses.asdict(row.action)
            | {"job": row.job.to_dict(), "outcome": row.outcome.to_dict()}
            | {name: getattr(row, name) for name in rest}
            for row in taken
        ],
    )


def read_batch(path: epath.Path) -> list[TrainingRow]:
    """Read what `write_batch` wrote.

    Raises:
      ConfigError: it is not there, or is none.
    """
    try:
        rows = [_row(data) for data in jsonl.read(path)]
        if not rows:
            raise ValueError("there is no such file, or it is empty")
        return rows
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.rl.replay is {str(path)!r}: that is no batch of rl ({error!r})") from error


def _row(data: dict[str, Any]) -> TrainingRow:
    fields = {field.name for field in dataclasses.fields(SampledAction)}
    action = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name in fields
    }
    return TrainingRow(
        SampledAction(**action | {"state": State.from_dict(data["state"])}),
        Job.from_dict(data["job"]),
        Outcome.from_dict(data["outcome"]),
        data["reward"],
        data["group"],
        data["version"],
    )


class ReplayedBatches:
    """Takes the place of `Batches`: every iteration is given the batch of one file, or its own from a folder.

    Args:
      path: a file, or the `batches` of a workdir.

    Raises:
      ConfigError: the file cannot be read.
    """

    dispatch_lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    states = 0
    replaced: Sequence[TrainingRow] = ()

    def __init__(self, path: epath.Path) -> None:
        self._path, self._is_folder = path, path.is_dir()
        self._taken = [] if self._is_folder else read_batch(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def take(self, version: int, params: Any, show: Callable[[Outcome], None]) -> tuple[list[TrainingRow], float]:
        """The batch, sampled in 0 seconds."""
        del params
        taken = read_batch(batch_path(self._path, version)) if self._is_folder else list(self._taken)
        for row in taken:
            show(row.outcome)
        return taken, 0.0

    def make_room(self) -> None:
        """There is nothing to let go."""

    def trained(self, taken: Sequence[TrainingRow]) -> None:
        """Nobody else is to learn of it."""

    def join(self) -> float:
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        return {}

    def restore(self, data: dict[str, Any], version: int) -> None:
        """A file has no state."""
