"""Evaluation records and `run.json` of a workdir, as plain data for statistics.

Evaluation records come in two kinds, in `evaluation/<policy>.jsonl`: a `step` is one action in a fixed state, an
`episode` a whole trajectory whose submissions were graded on the report half of the labels. Planned parts of an
evaluation that could not be played are in `evaluation/<policy>.unplayed.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from environments.protocol import OutcomeKind
from mlagent_jax.evaluation.unplayed import Unplayed, read_unplayed
from mlagent_jax.runtime import jsonl

POLICIES = ("base", "sft", "rl")
"""Policies in the order in which a run makes them."""
SPLITS = ("held_in", "held_out")


@dataclasses.dataclass(frozen=True)
class Action:
    """Result of one action; its reward is None exactly for an infrastructure error."""

    kind: OutcomeKind
    reward: float | None

    @property
    def valid(self) -> bool:
        return self.kind is not OutcomeKind.INVALID_ACTION


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One action, sampled in a fixed state."""

    task: str
    split: str
    state: str
    action: Action


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """One trajectory from the start of a task."""

    task: str
    split: str
    actions: tuple[Action, ...]
    score: float
    """Score of the best submission, graded on the report half."""
    start: float
    """Score of the starting script, on the same half."""
    higher_is_better: bool
    best_of: int
    """The k of best@k."""
    metric: str = ""
    """Name of the task's metric."""
    seconds: float = 0.0
    """Seconds of its replies and scripts."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    medal: str = ""
    """Medal on the task's leaderboard: `gold`, `silver`, `bronze` or `none`; empty: the task has no leaderboard."""


@dataclasses.dataclass(frozen=True)
class PolicyRecords:
    """Evaluation of one policy of a run."""

    steps: tuple[StepRecord, ...]
    episodes: tuple[EpisodeRecord, ...]
    unplayed: tuple[Unplayed, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """Records of a run so far."""

    workdir: str
    info: Mapping[str, Any]
    """Content of `run.json`; empty if it is not written yet."""
    policies: Mapping[str, PolicyRecords]
    """Evaluated policies, by name."""


def _action(outcome: Mapping[str, Any]) -> Action:
    kind = OutcomeKind(outcome["kind"])
    reward = None if kind is OutcomeKind.INFRASTRUCTURE_ERROR else float(outcome["reward"])
    return Action(kind, reward)


def _split(record: Mapping[str, Any]) -> str:
    if record["split"] not in SPLITS:
        raise ValueError(f"split is {record['split']!r}, not one of {', '.join(SPLITS)}")
    return record["split"]


def _step(record: Mapping[str, Any]) -> StepRecord:
    return StepRecord(record["task"], _split(record), record["state"], _action(record["outcome"]))


def _episode(record: Mapping[str, Any]) -> EpisodeRecord:
    costs = [step.get("took", {}) for step in record["steps"]]
    return EpisodeRecord(
        task=record["task"],
        split=_split(record),
        actions=tuple(_action(step["outcome"]) for step in record["steps"]),
        score=float(record["report_metric"]),
        start=float(record["report_init"]),
        higher_is_better=bool(record["higher_is_better"]),
        best_of=int(record["best_of"]),
        metric=record.get("metric", ""),
        seconds=float(record.get("seconds", 0.0)),
        prompt_tokens=sum(step.get("prompt_tokens", 0) for step in costs),
        completion_tokens=sum(step.get("completion_tokens", 0) for step in costs),
        cost=sum(step.get("cost", 0.0) for step in costs),
        medal=record.get("official", {}).get("medal", ""),
    )


def read_policy(path: epath.PathLike) -> PolicyRecords:
    """Read the evaluation of one policy.

    Raises:
      RecordError: A record lacks a field or has a wrong value; the message names file, record and field.
    """
    steps: list[StepRecord] = []
    episodes: list[EpisodeRecord] = []
    for number, record in enumerate(jsonl.iterate(path), start=1):
        try:
            if record["kind"] == "step":
                steps.append(_step(record))
            elif record["kind"] == "episode":
                episodes.append(_episode(record))
            else:
                raise ValueError(f"kind is {record['kind']!r}, not step or episode")
        except (KeyError, TypeError, ValueError) as error:
            what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise jsonl.RecordError(f"{path}, record {number}: {what}; evaluate again to rewrite the file") from error
    return PolicyRecords(tuple(steps), tuple(episodes), read_unplayed(path))


def read_info(workdir: epath.PathLike) -> dict[str, Any]:
    """Return `run.json`, or nothing if it is not written yet.

    Raises:
      RecordError: It is not a JSON object.
    """
    path = epath.Path(workdir) / "run.json"
    return read_object(path) if path.exists() else {}


def read_object(path: epath.Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      RecordError: It is none.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise jsonl.RecordError(f"{path} is not JSON ({error}): restore or delete it") from error
    if not isinstance(value, dict):
        raise jsonl.RecordError(f"{path} is {type(value).__name__}, not an object: restore or delete it")
    return value


def read_run(workdir: epath.PathLike) -> RunRecords:
    """Return all records that the summary of the run in `workdir` needs.

    Raises:
      FileNotFoundError: There is no such folder.
      RecordError: A file in it is broken.
    """
    root = epath.Path(workdir)
    if not root.is_dir():
        raise FileNotFoundError(f"workdir {str(workdir)!r} does not exist: give the folder that a run wrote")
    paths = {name: root / "evaluation" / f"{name}.jsonl" for name in POLICIES}
    # Other agents after the run's own policies.
    folder = root / "evaluation"
    files = sorted(folder.glob("*.jsonl"), key=str) if folder.exists() else []
    paths |= {path.stem: path for path in files if path.stem not in POLICIES}
    policies = {name: read_policy(path) for name, path in paths.items() if path.exists()}
    return RunRecords(workdir=str(workdir), info=read_info(root), policies=policies)
