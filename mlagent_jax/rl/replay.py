"""Batches in files: written before an iteration trains on them, and replayed without sampling.

A batch is JSON Lines, one row per action: the `SampledAction`, its job, outcome, reward, group and policy version. The
`diverged.jsonl` of a diverged run is a batch too.
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
    """Return the file of the batch of the iteration with this index; file numbers start at 1."""
    return folder / f"{iteration + 1:05d}.jsonl"


def write_batch(path: epath.Path, taken: Sequence[TrainingRow]) -> None:
    """Write a batch atomically."""
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
    """Read a batch that `write_batch` wrote.

    Raises:
      ConfigError: the file is missing, or is not a batch.
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
    """Replacement of `Batches`: every iteration gets the batch of one file, or its own batch from a folder.

    Args:
      path: a file, or the folder `batches` of a workdir.

    Raises:
      ConfigError: the file cannot be read.
    """

    dispatch_lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    states = 0
    resharding = (0, 0.0)
    replaced: Sequence[TrainingRow] = ()

    def __init__(self, path: epath.Path) -> None:
        self._path, self._is_folder = path, path.is_dir()
        self._taken = [] if self._is_folder else read_batch(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def take(self, version: int, params: Any, show: Callable[[Outcome], None]) -> tuple[list[TrainingRow], float]:
        """Return the batch, and 0 seconds of sampling."""
        del params
        taken = read_batch(batch_path(self._path, version)) if self._is_folder else list(self._taken)
        for row in taken:
            show(row.outcome)
        return taken, 0.0

    def make_room(self) -> None:
        """Do nothing: there is no memory to release."""

    def trained(self, taken: Sequence[TrainingRow]) -> None:
        """Do nothing: there is no pool to update."""

    def join(self) -> float:
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        return {}

    def restore(self, data: dict[str, Any], version: int) -> None:
        """Do nothing: files have no state."""
