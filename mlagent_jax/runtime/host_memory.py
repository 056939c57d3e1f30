"""Peak memory of a run: this process, its workers and their sandboxes together."""

from __future__ import annotations

import contextlib
import threading

import psutil

INTERVAL_SECONDS = 3.0


class PeakMemory:
    """Thread that samples the proportional set size of the process tree until `stop`; pages shared by forks count
    once."""

    def __init__(self, peak_gb: float = 0.0) -> None:
        self.peak_gb = peak_gb
        """Highest sum seen so far, in units of 1e9 bytes."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling. Idempotent."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.peak_gb = max(self.peak_gb, _tree_bytes() / 1e9)


def _tree_bytes() -> int:
    this, total = psutil.Process(), 0
    for process in (this, *this.children(recursive=True)):
        # Skip processes that have ended or belong to a sandbox's own user.
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    return total
