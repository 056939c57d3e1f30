"""The data that trainer and CPU hosts exchange: plain, versioned, JSON-serialisable.

The trainer enqueues a `Job`: a `State` and ONE action text. A worker takes the step and returns an `Outcome`. Nothing
else is exchanged. This module imports nothing of the project.
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
    """Return JSON with sorted keys and no spaces: equal data gives equal text, so its hash is an identity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class ProtocolError(ValueError):
    """Data of an unsupported version or shape. The message names the field and the remedy."""


class VersionError(ProtocolError):
    """Data written by another version of this package; that version can read it."""


class OutcomeKind(enum.StrEnum):
    """How a step ended, and whose fault it is."""

    INVALID_ACTION = "invalid_action"
    """The action is unparsable, cut off, unknown, has bad arguments, does not apply, or names a forbidden path."""
    SCRIPT_ERROR = "script_error"
    """Non-zero exit, missing or invalid submission, or any limit other than time and memory."""
    NO_EDIT = "no_edit"
    """A valid step that changes nothing scored (`Final Answer` included)."""
    TIME_LIMIT = "time_limit"
    MEMORY_LIMIT = "memory_limit"
    SCORED = "scored"
    """An edit that ran and was graded."""
    INFRASTRUCTURE_ERROR = "infrastructure_error"
    """A failure of the host, never of the policy: retried, then masked out of the loss. Has no reward."""


class _Record:
    """JSON conversion for the frozen dataclasses below. An unknown field is an error: it means another version."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build a record from `data` and check the type of every field.

        Raises:
          ProtocolError: `data` is not such a record.
        """
        if not isinstance(data, Mapping):
            raise ProtocolError(f"{cls.__name__} is {type(data).__name__}, not a JSON object")
        hints = _hints(cls)
        unknown = sorted(set(data) - hints.keys())
        if unknown:
            raise ProtocolError(f"{cls.__name__} has no field {unknown[0]!r}: was it written by another version?")
        try:
            fields = cls._decode(dict(data))
            for name, value in fields.items():
                if not _is_of(value, hints[name]):
                    raise ProtocolError(f"{cls.__name__}.{name} is {value!r:.100}, not of type {hints[name]}")
            return cls(**fields)
        except ProtocolError:
            raise
        except KeyError as error:
            raise ProtocolError(f"{cls.__name__} lacks the field {error}") from error
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"{cls.__name__}: {error}") from error

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
    """Return the type of each field, by name."""
    return typing.get_type_hints(record)


def _is_of(value: Any, hint: Any) -> bool:
    """Check whether a JSON value has a field's type. An integer also counts as a float; a boolean counts as neither."""
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
    """s_t: the input of the policy and of the step."""

    task: str
    """Key of the prepared task, `name@digest`."""
    history: tuple[Step, ...]
    snapshot: str
    """Id of the workspace's manifest in the snapshot store."""
    script: str
    """Text of the entry script in that snapshot, so that a prompt can be rendered without the store."""
    metric: float
    """Current metric on the reward half: that of the last scored script, or `m_init` at the start."""
    ideas: tuple[str, ...] = ()
    """Ideas added to the prompt, if any."""

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
    """Resource limits of one execution.

    CPU time is the script's budget. The wall limit is generous, so that the load of a machine does not affect the
    reward.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 120.0
    memory_mb: int = 1024
    processes: int = 64
    file_mb: int = 64
    """Largest file that may be written."""
    disk_mb: int = 128
    """Total size of all written files, workspace and temporary files together."""
    output_kb: int = 256
    """Size limit of standard output and of standard error, each. Longer output keeps its head and tail."""


LIMIT_RANGES: dict[str, tuple[float, float]] = {
    "cpu_seconds": (0.1, 7 * 86400.0),
    "wall_seconds": (0.1, 7 * 86400.0),
    "memory_mb": (16, 1 << 22),
    "processes": (1, 1 << 15),
    "file_mb": (1, 1 << 22),
    "disk_mb": (1, 1 << 22),
    "output_kb": (1, 1 << 20),
}
"""Lowest and highest value of each limit. Limits with integer bounds take integers only."""


def limit_problem(name: str, value: Any) -> str:
    """Return what the limit `name` of `LIMIT_RANGES` must be if `value` is invalid, else an empty string."""
    low, high = LIMIT_RANGES[name]
    whole = isinstance(low, int)
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high
    return "" if right else f"a {'whole ' if whole else ''}number from {low:g} to {high:.0f}"


@dataclasses.dataclass(frozen=True)
class Requirements(_Record):
    """Capabilities that a worker must offer to take a job."""

    cores: int = 1
    memory_mb: int = 1024
    gpus: int = 0
    image: str | None = None
    """Digest of the locked Python environment, or None for any."""
    guarantees: tuple[str, ...] = ()
    """Names of sandbox guarantees (see `environments.sandbox.base.GUARANTEES`)."""

    @classmethod
    def _decode(cls, data: dict[str, Any]) -> dict[str, Any]:
        data["guarantees"] = tuple(data.get("guarantees", ()))
        return data


@dataclasses.dataclass(frozen=True)
class Job(_Record):
    """A state and ONE action text to execute in it."""

    run: str
    policy_version: int
    state: State
    sample: int
    """Index among the actions that this policy version sampled from this state."""
    action: str
    truncated: bool = False
    """Whether the action was cut at the token limit. A cut action is invalid and is not executed."""
    reward: str = "improvement"
    """Name of a reward in `environments.rewards`: `name`, or `name:parameter=value,parameter=value`."""
    profile: str = "compact"
    """Profile of the action grammar: the labels that a reply must carry."""
    limits: Limits = Limits()
    requirements: Requirements = Requirements()
    seed: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        """Replace lone surrogates in the action: an endpoint may cut a reply within a character, and no file can store
        that."""
        if not self.action.isascii():
            whole = self.action.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, "action", whole)

    @property
    def id(self) -> str:
        """Identity of the job: enqueueing the same action of the same policy from the same state twice is harmless."""
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
    """Reference points of a task's metric, on the reward half of the hidden labels."""

    m_init: float
    m_best: float
    higher_is_better: bool
    noise: float = 0.0
    """Change of the metric caused by running the same script with another seed. A smaller gain counts as none."""

    @property
    def gap(self) -> float:
        return abs(self.m_best - self.m_init)

    def delta(self, before: float, after: float) -> float:
        """Return the change of the metric, signed so that positive is better."""
        return (after - before) if self.higher_is_better else (before - after)


@dataclasses.dataclass(frozen=True)
class Outcome(_Record):
    """Typed result of one step, with all inputs of its reward."""

    kind: OutcomeKind
    observation: str
    """Text shown to the agent. Never holds a hidden label or anything computed from one."""
    snapshot: str
    """Id of the workspace after the step, or before it if the step did not apply."""
    script: str
    """Text of the entry script in that snapshot."""
    metric_before: float
    metric_after: float | None
    """Metric of this step's submission on the reward half; None if nothing was graded."""
    scale: Scale
    reward: float | None = None
    """Reward of the step; None only for an infrastructure error."""
    action_name: str | None = None
    """Name of the parsed action; None if the reply did not parse."""
    action_input: dict[str, Any] | None = None
    final: bool = False
    """Whether the agent ended the episode (`Final Answer`)."""
    progress: tuple[str, ...] = ()
    """Stages that the host itself observed, of: parsed, applied, started, submission_written, valid, scored."""
    seconds: float = 0.0
    """Wall time of the script alone, without queue wait and failed infrastructure attempts."""
    cpu_seconds: float = 0.0
    reason: str = ""
    """Explanation in one line for a person. May name hosts and paths, so the agent does not see it."""
    diff: str = ""
    """Unified diff of the edit."""
    submission: str | None = None
    """Content hash of the submission in the store. The final report grades it on the report half."""
    cached: bool = False
    sandbox: str = ""
    repairs: tuple[str, ...] = ()
    """Deviations of the reply from the format that were unambiguous, and were repaired before the action ran."""
    version: int = VERSION

    @property
    def delta(self) -> float | None:
        """Improvement of the metric by this step, positive is better; None if nothing was graded."""
        return None if self.metric_after is None else self.scale.delta(self.metric_before, self.metric_after)

    @property
    def metric(self) -> float:
        """Current metric after the step."""
        return self.metric_before if self.metric_after is None else self.metric_after

    def next_state(self, job: Job) -> State:
        """Return s_{t+1}, the state after `job`."""
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
        data["repairs"] = tuple(data.get("repairs") or ())
        return data
