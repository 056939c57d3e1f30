"""Reasons for which a run ends: told on the screen, in its log, in run.json, in its report and by its exit status."""

from __future__ import annotations

import errno
import signal
from typing import Any, NamedTuple

from environments.actions.openai_http import EndpointError
from environments.files.blobs import StoreError
from environments.queue.base import QueueError
from environments.sandbox.base import SandboxError
from environments.tasks.task import TaskError
from mlagent_jax.runtime.errors import BudgetError, ConfigError, DivergedError, PeerError
from mlagent_jax.runtime.interruption import Stopped

_STOPPED = {signal.SIGINT: "Ctrl-C (SIGINT), by a person", signal.SIGTERM: "SIGTERM, by the machine or a launcher"}
_FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")


class Ending(NamedTuple):
    """End of a run."""

    kind: str
    """One of `STATUSES`, `preempted` or `interrupted`."""
    reason: str
    """Sentence for people."""
    status: int
    """Exit status of the process."""

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


FINISHED = Ending("finished", "all stages are done", 0)
STATUSES = {"failed": 1, "settings": 2, "diverged": 3, "queue": 4, "disk": 5, "endpoint": 6, "sandbox": 7, "peer": 8}
"""Exit statuses by kind; a launcher starts the run again only after 75, a SIGTERM."""
EXPECTED = {
    ConfigError: "settings",
    TaskError: "settings",
    DivergedError: "diverged",
    QueueError: "queue",
    StoreError: "queue",
    EndpointError: "endpoint",
    BudgetError: "endpoint",
    SandboxError: "sandbox",
    PeerError: "peer",
}
"""Kinds by errors whose message tells the user what to do: shown without a traceback."""


def ending_of(error: BaseException) -> Ending:
    """Return the ending that `error` brings about."""
    if isinstance(error, Stopped):
        kind = "preempted" if error.signum == signal.SIGTERM else "interrupted"
        return Ending(kind, f"stopped by {_STOPPED[error.signum]}; the same command goes on", error.status)
    if _is_disk_full(error):
        kind, reason = "disk", f"the disk is full ({_one_line(error)}): free space, then start the same command again"
    elif isinstance(error, ModuleNotFoundError) and error.name:
        kind = "settings"
        reason = f"{error.name} is not installed in this Python: activate .venv, or pip install -e '.[cpu]' (cuda, tpu)"
    else:
        kind = next((kind for each, kind in EXPECTED.items() if isinstance(error, each)), "failed")
        reason = str(error) if kind != "failed" else f"{type(error).__name__}: {_one_line(error)}"
    return Ending(kind, reason, STATUSES[kind])


def is_expected(error: BaseException) -> bool:
    """Return whether the ending's reason says all that a user needs: no traceback is shown."""
    return isinstance(error, Stopped) or ending_of(error).kind != "failed"


def _is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk is behind `error`: libraries wrap it in errors of their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
