"""What crosses the line between the trainer and the CPU hosts: plain, versioned, JSON-serialisable data.

The way of one action: the trainer puts a `Job` (a `State` and ONE action text) in the queue, a worker takes the
step and answers an `Outcome`. Nothing else crosses. This module imports nothing of the project.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

VERSION = 1


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal data gives equal text, so that its hash is an identity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class ProtocolError(ValueError):
    """Data of another version or shape than this program speaks; the message names the field and the remedy."""


class VersionError(ProtocolError):
    """Data of another version of this package, which can be read by that version."""


class OutcomeKind(enum.StrEnum):
    """How a step ended, and who is to blame for it."""

    INVALID_ACTION = "invalid_action"
    """The action is unparsable, cut off, unknown, has bad arguments, does not apply, or names a forbidden path."""
    SCRIPT_ERROR = "script_error"
    """Non-zero exit, no or invalid submission, or any limit but the two below."""
    NO_EDIT = "no_edit"
    """A valid step that changes nothing that is scored (`Final Answer` included)."""
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    SCORED = "scored"
    """An edit that ran and was graded."""
    INFRASTRUCTURE_ERROR = "infrastructure_error"
    """Ours, never the policy's: retried, then masked out of the loss. It has no reward."""


class _Record:
    """JSON for the frozen dataclasses below. Unknown fields are an error: they mean another version."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record that `data` holds, every field of the type it is declared with.

        Raises:
          ProtocolError: `data` is no such record.
        """
        if not isinstance(data, Mapping):
            raise ProtocolError(f"{cls.__name__} is {type(data).__name__}, not a JSON object")
        hints = _hints(cls)
        unknown = sorted(set(data) - hints.keys())
        if unknown:
            raise ProtocolError(f"{cls.__name__} has no field {unknown[0]!r}: was it written by another version?")
        try:
            record = cls(**cls._decode(dict(data)))
        except ProtocolError:
            raise
        except KeyError as error:
            raise ProtocolError(f"{cls.__name__} lacks the field {error}") from error
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"{cls.__name__}: {error}") from error
        for name, hint in hints.items():
            value = getattr(record, name)
            if not _is_of(value, hint):
                raise ProtocolError(f"{cls.__name__}.{name} is {value!r:.100}, not of type {hint}")
        return record

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        return data


def _check_version(name: str, data: Mapping[str, Any]) -> None:
    version = data["version"]
    if isinstance(version, int) and version != VERSION:
        raise VersionError(
            f"{name}.version is {version}, this program speaks {VERSION}: install the same version of this package on "
            "the trainer and on every worker"
        )


@functools.cache
def _hints(record: type) -> dict[str, Any]:
    """Types of a record's fields, by name."""
    return typing.get_type_hints(record)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a field's type. An integer is a float too; a truth value is neither."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is types.UnionType:
        return any(_is_of(value, each) for each in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(item, arguments[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


@dataclasses.dataclass(frozen=True)
class Step(_Record):
    """One (action text, observation) pair of a history."""

    action: str
    observation: str


@dataclasses.dataclass(frozen=True)
class State(_Record):
    """s_t: everything an action is chosen from and taken in."""

    task: str
    """Key of the prepared task, `name@digest`."""
    history: tuple[Step, ...]
    snapshot: str
    """Id of the workspace's manifest in the snapshot store."""
    script: str
    """Text of the entry script in that snapshot, so that a prompt is rendered without the store."""
    metric: float
    """Metric so far on the reward half: that of the last scored script on the way here, `m_init` at the start."""
    ideas: tuple[str, ...] = ()
    """The ideas that enrich the prompt, if any."""

    @property
    def id(self) -> str:
        return digest(self.to_dict())

    @property
    def task_name(self) -> str:
        return self.task.partition("@")[0]

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        data["history"] = tuple(Step.from_dict(step) for step in data["history"])
        data["ideas"] = tuple(data.get("ideas", ()))
        return data


@dataclasses.dataclass(frozen=True)
class Limits(_Record):
    """What one execution may use. CPU time is the script's own budget; the wall limit is generous, so that a busy
    machine does not turn into a reward."""

    cpu_seconds: float = 10.0
    wall_seconds: float = 120.0
    memory_mb: int = 1024
    processes: int = 64
    file_mb: int = 64
    """Largest file that can be written."""
    disk_mb: int = 128
    """All that can be written, workspace and temporary files together."""
    output_kb: int = 256
    """Standard output and standard error, each; the rest is cut, head and tail kept."""


LIMIT_RANGES: dict[str, tuple[float, float]] = {
    "cpu_seconds": (0.1, 7 * 86400.0),
    "wall_seconds": (0.1, 7 * 86400.0),
    "memory_mb": (16, 1 << 22),
    "processes": (1, 1 << 15),
    "file_mb": (1, 1 << 22),
    "disk_mb": (1, 1 << 22),
    "output_kb": (1, 1 << 20),
}
"""Lowest and highest value of each limit. Those in whole units take no fraction."""


def limit_problem(name: str, value: Any) -> str:
    """What the limit `name` of `LIMIT_RANGES` must be, where `value` is not that; else empty."""
    low, high = LIMIT_RANGES[name]
    whole = isinstance(low, int)
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high
    return "" if right else f"a {'whole ' if whole else ''}number from {low:g} to {high:.0f}"


@dataclasses.dataclass(frozen=True)
class Requirements(_Record):
    """What a worker must offer to take a job."""

    cores: int = 1
    memory_mb: int = 1024
    gpus: int = 0
    image: str | None = None
    """Digest of the locked Python environment, or None for any."""
    guarantees: tuple[str, ...] = ()
    """Sandbox guarantees by name (see `environments.sandbox.base.GUARANTEES`)."""

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        data["guarantees"] = tuple(data.get("guarantees", ()))
        return data


@dataclasses.dataclass(frozen=True)
class Job(_Record):
    """A state and ONE action text to take in it."""

    run: str
    policy_version: int
    state: State
    sample: int
    """Index among the actions sampled from this state at this policy version."""
    action: str
    truncated: bool = False
    """The action was cut at the token limit: it counts as an invalid action, and is not executed."""
    reward: str = "improvement"
    """A reward of `environments.rewards`: `name`, or `name:parameter=value,parameter=value`."""
    profile: str = "compact"
    """Action grammar profile: which labels a reply must carry."""
    limits: Limits = Limits()
    requirements: Requirements = Requirements()
    seed: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        """Make the action text that can be stored: an endpoint's answer may be cut within a character."""
        if not self.action.isascii():
            whole = self.action.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, "action", whole)

    @property
    def id(self) -> str:
        """Identity: enqueueing the same action of the same policy from the same state twice is harmless."""
        return digest([self.run, self.policy_version, self.state.id, self.sample, self.action])

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        _check_version("Job", data)
        data["state"] = State.from_dict(data["state"])
        data["limits"] = Limits.from_dict(data["limits"])
        data["requirements"] = Requirements.from_dict(data["requirements"])
        return data


@dataclasses.dataclass(frozen=True)
class Scale(_Record):
    """What a task's metric is measured against, on the reward half of the hidden labels."""

    m_init: float
    m_best: float
    higher_is_better: bool
    noise: float = 0.0
    """Change of the metric that running the same script again with another seed can make. A smaller gain is none."""

    @property
    def gap(self) -> float:
        return abs(self.m_best - self.m_init)

    def delta(self, before: float, after: float) -> float:
        """Change of the metric, signed so that positive is better."""
        return (after - before) if self.higher_is_better else (before - after)


@dataclasses.dataclass(frozen=True)
class Outcome(_Record):
    """The typed result of one step, with all that its reward was made of."""

    kind: OutcomeKind
    observation: str
    """What the agent sees. Never holds a hidden label or anything computed from one."""
    snapshot: str
    """Workspace after the step (the one before it where the step did not apply)."""
    script: str
    """Text of the entry script in that snapshot."""
    metric_before: float
    metric_after: float | None
    """Metric of this step's submission on the reward half; None where nothing was graded."""
    scale: Scale
    reward: float | None = None
    """None exactly for an infrastructure error."""
    action_name: str | None = None
    """Name of the parsed action, None where it did not parse."""
    action_input: dict[str, Any] | None = None
    final: bool = False
    """The agent ended the episode (`Final Answer`)."""
    progress: tuple[str, ...] = ()
    """Stages that the host saw for itself, of: parsed, applied, started, submission_written, valid, scored."""
    seconds: float = 0.0
    """Execution: wall time of the script alone (queue wait and failed infrastructure attempts excluded)."""
    cpu_seconds: float = 0.0
    reason: str = ""
    """Why, in one line, for a person (may name hosts and paths; not shown to the agent)."""
    diff: str = ""
    """Unified diff of the edit."""
    submission: str | None = None
    """Content hash of the submission file in the store; the final report grades it on the report half."""
    cached: bool = False
    sandbox: str = ""
    version: int = VERSION

    @property
    def delta(self) -> float | None:
        """Improvement of the metric by this step, positive is better; None where nothing was graded."""
        return None if self.metric_after is None else self.scale.delta(self.metric_before, self.metric_after)

    @property
    def metric(self) -> float:
        """Metric so far after the step."""
        return self.metric_before if self.metric_after is None else self.metric_after

    def next_state(self, job: Job) -> State:
        """s_{t+1}: where `job` led."""
        state = job.state
        return dataclasses.replace(
            state,
            history=(*state.history, Step(job.action, self.observation)),
            snapshot=self.snapshot,
            script=self.script,
            metric=self.metric,
        )

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        _check_version("Outcome", data)
        data["kind"] = OutcomeKind(data["kind"])
        data["scale"] = Scale.from_dict(data["scale"])
        data["progress"] = tuple(data.get("progress", ()))
        return data
