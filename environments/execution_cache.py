"""A cache of executions: the same workspace, task, limits, seed and sandbox give the same result.

A script's behaviour, and so its grade, is a function of its start. The cache keeps, for that start, all results of the
execution (`Measurement`), as JSON in a SQLite file that several processes of one host share. Metrics come from hidden
labels, so the file belongs beside the prepared tasks, out of reach of every sandbox. If those are on a network file
system, it is in the host's own cache (`environments.files.text_cache`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from environments.files.text_cache import TextCache
from environments.protocol import Limits, canonical_json, digest
from environments.sandbox.base import Ending, Execution

VERSION = 2
"""Version of key and value: raise it whenever either, or the way of grading, changes its meaning."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Result of one execution, and of the host's inspection afterwards."""

    execution: Execution
    snapshot: str
    """Id of the workspace afterwards, or of the one before the execution if the new one cannot be kept."""
    script: str
    """Text of the entry script in that snapshot."""
    written: bool = False
    """Whether the script left something under the submission's name."""
    submission: str | None = None
    """Id of the submission, if it could be read."""
    metric: float | None = None
    """Metric on the reward half; None if nothing was graded."""
    problem: str = ""
    """Why a successful execution was not graded or not kept, for the agent; else empty."""
    reason: str = ""
    """Further details of `problem` for a person."""
    cacheable: bool = True
    """Whether grading ended without hitting a limit."""

    @property
    def repeatable(self) -> bool:
        """Whether the result depends on its start alone. A limit depends on the load of the host, and a death by signal
        may be the host's doing."""
        return self.cacheable and self.execution.ending is Ending.EXITED and self.execution.exit_code in range(128)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measurement:
        execution = dict(data["execution"])
        execution["ending"] = Ending(execution["ending"])
        return cls(**{**data, "execution": Execution(**execution)})


def cache_key(
    workspace: str,
    script: str,
    task: str,
    limits: Limits,
    seed: int,
    sandbox: str,
    environment_digest: str,
    editor: str = "",
    gpus: int = 0,
) -> str:
    """Return the key of an execution: everything that its result depends on.

    Args:
      workspace: id of the starting snapshot, with the edit applied.
      script: path of the script to run.
      task: key of the prepared task, which includes the digest of its data.
      editor: id of the second model that made the edit, if any.
      gpus: number of GPUs available to the script.
    """
    inputs = [VERSION, workspace, script, task, limits.to_dict(), seed, sandbox, environment_digest]
    return digest([*inputs, *([editor] if editor else []), *([gpus] if gpus else [])])


class ExecutionCache:
    """Measurements by key, in one SQLite file. Thread-safe; safe among processes of one host."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, readable by its owner alone; see `TextCache`."""
        self._texts = TextCache(path, "measurements")

    def get(self, key: str) -> Measurement | None:
        """Return the measurement under `key`; None if there is none or this program cannot read it."""
        text = self._texts.get(key)
        try:
            return None if text is None else Measurement.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, measurement: Measurement) -> None:
        """Store a measurement, unless it is not `repeatable` or the key has one already."""
        if measurement.repeatable:
            self._texts.put(key, canonical_json(measurement.to_dict()))

    def close(self) -> None:
        self._texts.close()
