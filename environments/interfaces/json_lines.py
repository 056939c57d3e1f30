"""An episode behind a pair of streams, one JSON object per line: `python -m environments serve TASK` (docs/serve.md).

    request   {"command": "reset"}   {"command": "step", "action": "<raw reply text>"}   {"command": "close"}
    answer    {"ok": true, "observation": ..., "reward": ..., ...}   {"ok": false, "error": {"kind": ...}}

A greeting comes first. Every request then has exactly one answer, in order. An invalid request is answered too, so that
a scaffold in any language can go on. Answers hold no hidden labels, only figures of the `Outcome`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from environments.episode import Episode
from environments.files.blobs import StoreError
from environments.protocol import Outcome
from environments.sandbox.base import SandboxError
from environments.tasks.task import TaskError

PROTOCOL = 1
"""Version of the line format, part of the greeting."""
MAX_REQUEST_BYTES = 4 << 20
FIELDS = {"reset": {"seed": int}, "step": {"action": str}, "close": {}}
"""Commands, each with its fields in addition to `command` and `id`."""
OPTIONAL = ("seed",)


class RequestError(ValueError):
    """A request that cannot be served and had no effect."""

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.kind, self.remedy = kind, remedy


def serve(episode: Episode, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer the requests of one client, until `close` or the end of the stream."""

    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
        answers.flush()

    send(greeting(episode))
    served = _Served(episode)
    for line in _lines(requests):
        identity: dict[str, Any] = {}
        try:
            request = _parse(line)
            identity = {name: request.pop(name) for name in ("id",) if name in request}
            command = _check(request)
            answer = {"ok": True, **served.handle(command, request)}
        except RequestError as error:
            answer, command = failure(error.kind, str(error), error.remedy), ""
        except (SandboxError, StoreError, TaskError, OSError) as error:
            remedy = "the state is as it was: send the same request again, or close"
            answer, command = failure("infrastructure", f"{type(error).__name__}: {error}", remedy), ""
        send({**identity, **answer})
        if command == "close":
            return


def greeting(episode: Episode) -> dict[str, Any]:
    """Return the first line, which describes the episode."""
    spec = episode.spec
    return {
        "ok": True,
        "protocol": PROTOCOL,
        "task": spec.name,
        "kind": spec.kind,
        "metric": spec.metric,
        "higher_is_better": spec.higher_is_better,
        "profile": episode.profile,
        "max_steps": episode.max_steps,
        "limits": spec.limits.to_dict(),
    }


def failure(kind: str, message: str, remedy: str) -> dict[str, Any]:
    """Return an answer that reports an error and its remedy."""
    return {"ok": False, "error": {"kind": kind, "message": message, "remedy": remedy}}


def record(outcome: Outcome) -> dict[str, Any]:
    """Convert an outcome to plain JSON. Only `reward`, `metric` and `metric_before` are computed from hidden labels."""
    return {
        "outcome": outcome.kind.value,
        "reward": outcome.reward,
        "metric": outcome.metric_after,
        "metric_before": outcome.metric_before,
        "observation": outcome.observation,
        "seconds": outcome.seconds,
        "cpu_seconds": outcome.cpu_seconds,
        "action": outcome.action_name,
        "progress": list(outcome.progress),
        "final": outcome.final,
        "cached": outcome.cached,
        "reason": outcome.reason,
        "diff": outcome.diff,
    }


class _Served:
    """The episode, and whether it has been reset."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._running = False
        self._handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "reset": self._reset,
            "step": self._step,
            "close": dict,
        }

    def handle(self, command: str, fields: dict[str, Any]) -> dict[str, Any]:
        return self._handlers[command](**fields)

    def _reset(self, seed: int | None = None) -> dict[str, Any]:
        observation, info = self._episode.reset(seed=seed)
        self._running = True
        return {"observation": observation, "info": {"metric": info["state"].metric}}

    def _step(self, action: str) -> dict[str, Any]:
        if not self._running:
            raise RequestError("no_episode", "no episode is under way", 'begin one with {"command": "reset"}')
        observation, reward, terminated, truncated, info = self._episode.step(action)
        self._running = not (terminated or truncated)
        facts = record(info["outcome"])
        return {
            "observation": observation,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "info": {name: value for name, value in facts.items() if name not in ("observation", "reward")},
        }


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines that are not blank. Lines that are too long are cut, so that memory stays bounded."""
    while line := stream.readline(MAX_REQUEST_BYTES + 1):
        rest = line
        while len(line) > MAX_REQUEST_BYTES and rest and not rest.endswith(b"\n"):
            rest = stream.readline(1 << 16)
        if line.strip():
            yield line


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_REQUEST_BYTES:
        raise RequestError(
            "bad_request", f"a request has at most {MAX_REQUEST_BYTES} bytes", "send less: the agent's reply alone"
        )
    try:
        request = json.loads(line, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RequestError("bad_request", f"not JSON: {error}", "send one JSON object a line, in UTF-8") from error
    if not isinstance(request, dict):
        shown = line[:40].decode(errors="replace").strip()
        raise RequestError("bad_request", f"a request is an object, this is {shown!r}", 'send {"command": ...}')
    return request


def _refuse(number: str) -> float:
    raise ValueError(f"{number} is no number of JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _check(request: dict[str, Any]) -> str:
    """Remove and return the command of a request; its checked fields stay."""
    command = request.pop("command", None)
    if not isinstance(command, str) or command not in FIELDS:
        remedy = f"choose one of {', '.join(FIELDS)}"
        raise RequestError("bad_request", f"command is {command!r}", remedy)
    known = FIELDS[command]
    if unknown := sorted(set(request) - set(known)):
        remedy = f"{command} takes {', '.join(known) or 'no field'}"
        raise RequestError("bad_request", f"{command} has no field {unknown[0]!r}", remedy)
    for name, kind in known.items():
        optional = name in OPTIONAL and request.get(name) is None
        if not optional and type(request.get(name)) is not kind:
            remedy = f"{name} is a JSON {'string' if kind is str else 'integer'}"
            raise RequestError("bad_request", f"{command}: {name} is {request.get(name)!r:.80}", remedy)
    return command
