"""Executions that need not be made twice: the same workspace, task, limits, seed and sandbox give the same result.

What a script does is a function of what it starts from; so is its grade. The cache keeps, for that start, all that the
environment learned from running it (`Measurement`), as JSON in a SQLite file that several processes of one host share.
Metrics come from hidden labels, so the file belongs beside the prepared tasks, out of reach of every sandbox. Where
those are on a network file system, it is in the host's own cache (`environments.files.text_cache`).
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
"""Of the key and of what is kept: grows whenever either, or the way of grading, changes its meaning."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One execution, and what the host found afterwards."""

    execution: Execution
    snapshot: str
    """Workspace afterwards (the one before the execution where what is left cannot be kept)."""
    script: str
    """Text of the entry script in that snapshot."""
    written: bool = False
    """The script left something under the submission's name."""
    submission: str | None = None
    """Id of a submission that could be read."""
    metric: float | None = None
    """On the reward half; None where nothing was graded."""
    problem: str = ""
    """Why an execution that ended well was not graded or not kept, for the agent; empty where all is well."""
    reason: str = ""
    """The same for a person, where there is more to say."""
    cacheable: bool = True
    """Grading did not end by a limit."""

    @property
    def repeatable(self) -> bool:
        """It depends on nothing but its start. A limit depends on the load of the host, and a death by signal may be
        the host's doing."""
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
    """Key of an execution: everything its result depends on.

    Args:
      workspace: id of the snapshot it starts from, the edit applied.
      script: what is run in it.
      task: key of the prepared task, which holds the digest of its data.
      editor: id of the second model that made the edit, if one did.
      gpus: how many it may use.
    """
    parts = [VERSION, workspace, script, task, limits.to_dict(), seed, sandbox, environment_digest]
    return digest([*parts, *([editor] if editor else []), *([gpus] if gpus else [])])


class ExecutionCache:
    """Measurements by key, in one SQLite file. Thread-safe; safe among processes of one host."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, readable by its owner alone; see `TextCache`."""
        self._texts = TextCache(path, "measurements")

    def get(self, key: str) -> Measurement | None:
        """What is kept under `key`; None where nothing is, or nothing that this program can read."""
        text = self._texts.get(key)
        try:
            return None if text is None else Measurement.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, measurement: Measurement) -> None:
        """Keep a measurement, unless it is not `repeatable` or one is kept already."""
        if measurement.repeatable:
            self._texts.put(key, canonical_json(measurement.to_dict()))

    def close(self) -> None:
        self._texts.close()
