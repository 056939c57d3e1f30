"""Rules for how an execution ended, from measurements: the same for every sandbox."""

from __future__ import annotations

import os
from typing import Any

from environments.guest import tree
from environments.protocol import Limits
from environments.sandbox.base import Ending, Execution


def judge(result: dict[str, Any], stdout: str, stderr: str, limits: Limits) -> Execution:
    """Return the `Execution` for a sandbox's report, from measurements only, never from the script's claims.

    Args:
      result: `status` (wait status, or None if killed), `killed` ("wall", "cpu", "memory" or None), `wall_seconds`,
        `cpu_seconds`, `out_of_memory` (optional), `full` ("disk", "inodes" or None) and `refused` (refusals of
        `transfer`).
      stdout: captured standard output.
      stderr: captured standard error.
      limits: limits of the execution.
    """
    exit_code = None if result["status"] is None else os.waitstatus_to_exitcode(result["status"])
    refused = [tree.Refused(path[:80], why[:80], count) for path, why, count in result["refused"]]
    over = [each.why for each in refused if each.why in tree.LIMITS]
    ending, detail = Ending.EXITED, ""
    if result["killed"] == "memory" or result.get("out_of_memory"):
        ending, detail = Ending.MEMORY_LIMIT, f"memory: {limits.memory_mb} MiB"
    elif result["killed"] == "wall":
        ending, detail = Ending.TIME_LIMIT, f"wall time: {limits.wall_seconds:g} s"
    elif result["killed"] == "cpu" or result["cpu_seconds"] > limits.cpu_seconds:
        ending, detail = Ending.TIME_LIMIT, f"CPU time: {limits.cpu_seconds:g} s"
    elif over or (exit_code != 0 and result["full"]):
        ending, detail = Ending.OTHER_LIMIT, f"files: {over[0] if over else result['full'] + ' full'}"
    if refused:
        detail = "; ".join(part for part in (detail, f"not kept: {', '.join(map(str, refused))}") if part)
    return Execution(
        ending=ending,
        exit_code=exit_code if ending in (Ending.EXITED, Ending.OTHER_LIMIT) else None,
        stdout=stdout,
        stderr=stderr,
        wall_seconds=result["wall_seconds"],
        cpu_seconds=result["cpu_seconds"],
        detail=detail,
    )
