"""Temporary folders with an owner: the next process removes those that a killed process left.

The owner holds a lock on the folder itself. The kernel drops it when the owner dies, for any reason, so a folder that
can be locked is abandoned. This also works between containers that share the folder, where a process id means nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

from environments.files.hostile import remove_folder


class OwnedFolder:
    """A new empty folder of this process, until `close`."""

    def __init__(self, prefix: str, base: Path) -> None:
        """Create and lock the folder.

        Raises:
          OSError: `base` is not writable, or its file system has no locks.
        """
        while True:  # Retry until it is locked before another process removes it as abandoned.
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
            try:
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self.path.exists():
                return
            os.close(self._lock)

    def close(self) -> None:
        """Delete the folder and its contents.

        Raises:
          OSError: something in it cannot be deleted.
        """
        try:
            remove_folder(self.path)
        finally:
            os.close(self._lock)


def remove_abandoned(prefix: str, base: Path) -> None:
    """Delete the `OwnedFolder`s of this prefix in `base` whose owners are dead, as far as possible."""
    for folder in base.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_folder(folder)
            finally:
                os.close(lock)
