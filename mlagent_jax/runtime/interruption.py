"""Ctrl-C and SIGTERM: the first one saves and stops, the second stops at once.

    with Interruption() as interruption:
        with interruption.held():          # an update of the parameters, which has to be whole
            ...
            if interruption.requested:     # a good place: save, and leave
                save()
                interruption.check()

A signal is an exception where it is met, unless the section is `held`: then it waits for `check`, or for the section's
end. Python drops what a handler raises inside a callback of the garbage collector (JAX has one); it is raised again as
soon as that callback is over. Of several processes of one run no one may leave alone (`deferred`): they stop together,
where `parallelism.processes.gather` lets them meet.

A batch machine that is taken back (a spot slice, a pod that is evicted, a job whose time is up) sends SIGTERM and kills
soon after; the exit status tells the launcher that it may start the same command again.
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
"""Exit status after Ctrl-C: a person wants it stopped."""
PREEMPTED = 75
"""Exit status after SIGTERM (EX_TEMPFAIL of sysexits.h): the launchers under `launch/` start the run again."""

_AGAIN_SECONDS = 0.02

log = logging.getLogger(__name__)


def leave(status: int) -> NoReturn:
    """End the process at once with this status, when all that counts is closed.

    Python would look through the whole heap of JAX's programs first, for seconds (30 beside other work), or crash in
    it, and the status would be lost: a launcher starts the run again by it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Stopped(KeyboardInterrupt):
    """The run was told to stop, and has saved what it had to."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def status(self) -> int:
        """The process's exit status."""
        return PREEMPTED if self.signum == signal.SIGTERM else INTERRUPTED


class Interruption:
    """What the process was told by signals. Only the main thread may enter it, which sets the handlers."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._holds = 0
        self._before: dict[int, Any] = {}
        self._hook_before: Any = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signum is not None

    @property
    def signum(self) -> int | None:
        """The signal that has come, or None."""
        return self._signum

    def request(self, signum: int) -> None:
        """As if that signal had come, to be raised by the next `check`: another process of the run was told."""
        if self._signum is None:
            self._signum = signum

    def defer(self) -> None:
        """From now on a signal is raised by `check` alone."""
        self._holds += 1

    def check(self) -> None:
        """Raise `Stopped` if a signal has come, held or not."""
        if self._signum is not None:
            raise Stopped(self._signum)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A section that no signal breaks into: it is raised at `check`, or when the (outermost) section ends well."""
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
        # The next one, of either kind, kills: a run that does not come to its next good place must be stoppable.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        self._signum = signum
        log.warning(
            "%s: stopping; an update or a compilation under way is finished first, and what is not saved is saved; "
            "once more stops at once",
            signal.Signals(signum).name,
        )
        self._raise()

    def _raise(self) -> None:
        if not self._holds:
            self.check()

    def _dropped(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Python's report of an exception that it drops."""
        if isinstance(unraisable.exc_value, Stopped):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            self._hook_before(unraisable)

    def _again(self, signum: int, frame: FrameType | None) -> None:
        self._raise()
