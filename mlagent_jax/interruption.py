"""Ctrl-C and SIGTERM: the first one saves and stops, the second stops at once.

    with Interruption() as interruption:
        with interruption.held():          # an update of the parameters, which has to be whole
            ...
            if interruption.requested:     # a good place: save, and leave
                save()
                interruption.check()

A signal is an exception where it is met, unless the section is `held`: then it waits for `check`, or for the section's
end. A batch machine that is taken back (a spot slice, a pod that is evicted, a job whose time is up) sends SIGTERM and
kills soon after; the exit status tells the launcher that it may start the same command again.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

INTERRUPTED = 130
"""Exit status after Ctrl-C: a person wants it stopped."""
PREEMPTED = 75
"""Exit status after SIGTERM (EX_TEMPFAIL of sysexits.h): the launchers under `launch/` start the run again."""

log = logging.getLogger(__name__)


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

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signum is not None

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
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # The next one, of either kind, kills: a run that does not come to its next good place must be stoppable.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        self._signum = signum
        log.warning("%s: saving and stopping; once more stops at once", signal.Signals(signum).name)
        if not self._holds:
            self.check()
