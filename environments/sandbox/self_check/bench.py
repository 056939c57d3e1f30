"""Tools of a check: a sandbox, its own folder, and a way to report a failure.

A check is a function of a `Bench` that raises `CheckError` if the sandbox fails.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from environments.protocol import Limits
from environments.sandbox.base import GUARANTEES, Ending, Execution, Sandbox

LIMITS = Limits(cpu_seconds=20.0, wall_seconds=60.0, memory_mb=512, processes=32, file_mb=8, disk_mb=16, output_kb=64)
OF_THE_POLICY = frozenset(Ending)
"""Allowed endings of an execution; a failure of ours is an exception."""


class CheckError(Exception):
    """A sandbox fails a check. The message is the observation."""


def expect(holds: bool, seen: object = "") -> None:
    """Raise a `CheckError` that shows `seen` unless `holds`."""
    if not holds:
        raise CheckError(str(seen)[:2000])


@dataclasses.dataclass
class Ran:
    """An execution and its workspace afterwards."""

    execution: Execution
    workspace: Path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.execution, name)

    @property
    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.workspace)) for path in self.workspace.rglob("*"))


class Bench:
    """Runs scripts in a sandbox, each in a workspace under `folder`."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox, self.folder = sandbox, folder
        self._serial = itertools.count()

    def execute(
        self,
        text: str,
        files: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        seed: int = 0,
        workspace: Path | None = None,
        script: str = "train.py",
        **limits: float,
    ) -> Ran:
        """Run `text` as train.py.

        Args:
          text: text of the script.
          files: other files of the workspace, by path.
          data: data of the task, by path.
          seed: seed of the execution.
          workspace: an existing folder; default: a new one.
          script: path of the script to run.
          limits: limits that differ from `LIMITS`.
        """
        number = next(self._serial)
        workspace = workspace or self.folder / f"workspace{number}"
        _write(workspace, {"train.py": text, **(files or {})})
        public = _write(self.folder / f"data{number}", data) if data is not None else None
        bounds = dataclasses.replace(LIMITS, **limits)
        return Ran(self.sandbox.run(workspace, script, bounds, data=public, seed=seed), workspace)

    def concurrently(self, attack: str, honest: str, **options: Any) -> tuple[list[Ran], Ran]:
        """Run `honest` repeatedly while `attack` runs; return the results of these and of the attack."""
        with ThreadPoolExecutor(1) as thread:
            attacker: Future[Ran] = thread.submit(self.execute, attack, **options)
            ran = [self.execute(honest, **options)]
            while not attacker.done():
                ran.append(self.execute(honest, **options))
            return ran, attacker.result()


def _write(folder: Path, files: Mapping[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@dataclasses.dataclass(frozen=True)
class Check:
    """One check. Its title is the first line of the function's docstring."""

    guarantee: str
    """Guarantee of `GUARANTEES` that the check tests; a sandbox without it need not pass."""
    run: Callable[[Bench], None]

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def title(self) -> str:
        return (self.run.__doc__ or "").partition("\n")[0]


CHECKS: dict[str, Check] = {}
"""Checks by name, in the order of their modules."""
CONFORMANCE = "conformance"
"""Value in place of a guarantee for checks that every sandbox must pass."""


def check(guarantee: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Add the decorated function to `CHECKS`."""
    if guarantee != CONFORMANCE and guarantee not in GUARANTEES:
        raise ValueError(f"no guarantee is named {guarantee!r}")

    def add(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CHECKS[function.__name__] = Check(guarantee, function)
        return function

    return add
