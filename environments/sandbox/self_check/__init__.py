"""The suite of checks that every sandbox must pass, run on this host.

    python -m environments self-check [--sandbox NAME]

    `conformance`   behaviour for an honest script, and the report of each way to end
    `abuse`         attacks of one script on the host, the labels and the limits
    `neighbours`    attacks of one script on concurrent and later executions

The tests run the same checks. Your own sandbox is registered by an entry point in the group `mlagent_jax.sandboxes`,
and must pass them too.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from environments.sandbox.base import Sandbox, SandboxError
from environments.sandbox.self_check import abuse, conformance, neighbours
from environments.sandbox.self_check.bench import CHECKS, CONFORMANCE, Bench, Check, CheckError

__all__ = ["CHECKS", "Bench", "Check", "CheckError", "Result", "run_checks", "table"]

_MODULES = (conformance, abuse, neighbours)
"""Imported for what they register."""
PASSED, FAILED, NOT_GIVEN = "ok", "FAIL", "not given"


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of one check."""

    name: str
    guarantee: str
    title: str
    status: str
    """`PASSED`, `FAILED`, or `NOT_GIVEN`: the sandbox does not claim the guarantee on this host."""
    seen: str = ""
    """Observation of a failed check."""

    @property
    def failed(self) -> bool:
        return self.status == FAILED

    def __str__(self) -> str:
        seen = f"\n{'':11}{self.seen}" if self.seen else ""
        return f"{self.status:9}  {self.guarantee:13}  {self.title}{seen}"


def run_checks(sandbox: Sandbox) -> Iterator[Result]:
    """Run every check, each in its own folder.

    Raises:
      SandboxError: the sandbox runs no scripts at all.
    """
    given = sandbox.guarantees | {CONFORMANCE}
    with tempfile.TemporaryDirectory(prefix="mlagent-check-") as root:
        os.chmod(root, 0o755)  # noqa: S103 - what a script could read if it could reach it
        for check in CHECKS.values():
            folder = Path(root, check.name)
            folder.mkdir()
            status, seen = NOT_GIVEN, ""
            if check.guarantee in given:
                try:
                    check.run(Bench(sandbox, folder))
                    status = PASSED
                except CheckError as error:
                    status, seen = FAILED, str(error)
                except (SandboxError, OSError) as error:
                    status, seen = FAILED, f"a failure of ours: {error}"
            yield Result(check.name, check.guarantee, check.title, status, seen)


def table(results: Sequence[Result]) -> str:
    """Format one line per guarantee: whether it is given, and how many of its checks hold."""
    lines = []
    for guarantee in dict.fromkeys(result.guarantee for result in results):
        of_it = [result for result in results if result.guarantee == guarantee]
        held = sum(result.status == PASSED for result in of_it)
        missing = all(result.status == NOT_GIVEN for result in of_it)
        lines.append(f"{guarantee:14} {'not given here' if missing else f'{held} of {len(of_it)} checks hold'}")
    return "\n".join(lines)
