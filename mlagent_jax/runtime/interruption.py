"""Ctrl-C and SIGTERM: the first one saves and stops, the second stops at once.

    with Interruption() as interruption:
        with interruption.held():          # an update of the parameters, which must be complete
            ...
            if interruption.requested:     # a safe point: save and stop
                save()
                interruption.check()

A signal raises an exception immediately, unless the section is `held`: then it waits for `check` or for the end of the
section. Python drops an exception that a handler raises inside a callback of the garbage collector (JAX has one); it is
raised again after that callback. In a run of several processes none may stop alone (`defer`): they stop together at
`runtime.processes.gather`.

A preempted machine (a spot slice, an evicted pod, a job at its time limit) gets SIGTERM and is killed soon after. The
exit status tells the launcher that it may start the same command again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, Self

INTERRUPTED = 130
"""Exit status after Ctrl-C: a person stopped the run."""
PREEMPTED = 75
"""Exit status after SIGTERM (EX_TEMPFAIL of sysexits.h): the launchers under `launch/` start the run again."""

_AGAIN_SECONDS = 0.02

log = logging.getLogger(__name__)


def leave(status: int) -> NoReturn:
    """End the process at once with this status, after everything is saved and closed.

    A normal exit would first scan the whole heap of JAX's programs, for seconds (30 on a busy machine), or crash in it
    and lose the status, which tells a launcher whether to restart the run.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def status(self) -> int:
        """Return the process's exit status."""
        return PREEMPTED if self.signum == signal.SIGTERM else INTERRUPTED


class Interruption:
    """Signals that the process received. Only the main thread may enter it, which installs the handlers."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._holds = 0
        self._before: dict[int, Any] = {}
        self._hook_before: Any = None

    @property
    def requested(self) -> bool:
        """Return whether a signal was received."""
        return self._signum is not None

    @property
    def signum(self) -> int | None:
        """Return the received signal, or None."""
        return self._signum

    def request(self, signum: int) -> None:
        """Record `signum` as if received, to be raised by the next `check`: another process of the run received it."""
        if self._signum is None:
            self._signum = signum

    def defer(self) -> None:
        """Raise signals only in `check` from now on."""
        self._holds += 1

    def check(self) -> None:
        """Raise `Stopped` if a signal was received, held or not."""
        if self._signum is not None:
            raise Stopped(self._signum)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Protect a section from signals: a signal is raised at `check`, or when the outermost section ends without an
        error."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if not self._holds:
            self.check()

    def __enter__(self) -> Self:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._before[signum] = signal.signal(signum, self._note)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._again)
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._hook_before
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # The next signal of either kind kills: a run that does not reach its next safe point must be stoppable.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        self._signum = signum
        log.warning(
            "%s: stopping after the current update or compilation, then saving; a second signal stops at once",
            signal.Signals(signum).name,
        )
        self._raise()

    def _raise(self) -> None:
        if not self._holds:
            self.check()

    def _dropped(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Schedule a dropped `Stopped` to be raised again; pass other dropped exceptions on."""
        if isinstance(unraisable.exc_value, Stopped):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            self._hook_before(unraisable)

    def _again(self, signum: int, frame: FrameType | None) -> None:
        self._raise()
