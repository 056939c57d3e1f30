"""The sandbox protocol: run one untrusted script, once, under limits, and report how it ended.

Providers: `environments.sandbox.bubblewrap` and `environments.sandbox.docker`. Both run the same locked Python
environment (`environments.sandbox.rootfs`) and pass one conformance suite.
"""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Protocol

from environments.protocol import Limits

GUARANTEES = {
    "filesystem": "sees only its own workspace, its task's public data (read-only) and the locked Python environment",
    "network": "no network interface but its own loopback, no DNS, no host sockets",
    "processes": "cannot see or signal any process but its own; none outlives the execution",
    "privileges": "no capability, no new privileges, an unprivileged user, system calls filtered",
    "neighbours": "nothing in common with another execution that one could use up, hold or end: no user id, no lease",
    "cpu_time": "CPU time limited over all of its processes together",
    "memory": "memory limited over all of its processes together",
    "process_count": "number of processes limited",
    "disk": "bytes written limited, over workspace and temporary files",
    "inodes": "number of files limited",
    "output": "standard output and error limited",
}
"""Every guarantee that a sandbox can give, by name. A provider's guarantees on this host are probed at start."""


class SandboxError(Exception):
    """Our failure, not the script's: the engine died, the image is missing, the disk is full. Never a reward."""


class SandboxUnavailableError(SandboxError):
    """This sandbox cannot run on this host. The message names the missing part and the command that provides it."""


class Ending(enum.StrEnum):
    """Reason of an execution's end."""

    EXITED = "exited"
    """The script exited, or caused a signal itself: see `exit_code`."""
    TIME_LIMIT = "time_limit"
    """Limit of CPU time or wall time."""
    MEMORY_LIMIT = "memory_limit"
    OTHER_LIMIT = "other_limit"
    """Disk, file size, processes: a script error for the policy."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """Result of one execution."""

    ending: Ending
    exit_code: int | None
    """Exit code; None if the sandbox killed the script."""
    stdout: str
    stderr: str
    wall_seconds: float
    """Wall time of the script alone, without the sandbox's start and clean-up."""
    cpu_seconds: float
    """User and system time of the script and all of its processes."""
    detail: str = ""
    """Limit that was exceeded, for a person."""

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


class Sandbox(Protocol):
    """One sandbox on this host. Thread-safe: `run` may be called from several threads concurrently."""

    name: str
    environment_digest: str
    """Identity of the locked Python environment that scripts run in."""
    gpus: int
    """Number of this host's GPUs available to executions."""

    @property
    def guarantees(self) -> frozenset[str]:
        """Names of `GUARANTEES` that hold on this host, as probed at start."""

    def run(
        self,
        workspace: Path,
        script: str,
        limits: Limits,
        data: Path | None = None,
        seed: int = 0,
        gpus: int = 0,
    ) -> Execution:
        """Run `python <script>` with `workspace` as its current directory; return when all its processes have ended.

        The script sees the workspace as `/workspace` (writable, limited by `limits`), `data` as `/workspace/data`
        (read-only) and nothing else of the host. The workspace's files afterwards are hostile: symbolic links, FIFOs,
        sparse files. `seed` is passed to the script as PYTHONHASHSEED and MLAGENT_SEED. The script has exclusive use of
        `gpus` of this host's GPUs.

        Raises:
          SandboxError: the sandbox failed, not the script.
        """

    def close(self) -> None:
        """Kill running scripts and free all resources. Idempotent."""
