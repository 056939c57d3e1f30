"""Public data of tasks where a sandbox can mount them: copied once, read-only for every execution that needs them.

The warm bubblewrap sandbox sees nothing of the host but this store. So new data can be added while it runs, whatever
the original's location and permissions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from environments.files.owned import OwnedFolder, remove_abandoned

_STATE_PREFIX = "mlagent-sandbox-"
_SERIAL = itertools.count()


@dataclasses.dataclass
class _Entry:
    copied: Future[None] = dataclasses.field(default_factory=Future)
    """Set when the copy is complete or has failed."""
    size_bytes: int = 0
    users: int = 0


class DataStore:
    """Copies of data directories under one folder; beyond a size, the least recently used is evicted.

    Nothing is copied or deleted under the lock, so a thread that needs other data does not wait for gigabytes.
    """

    def __init__(self, root: Path, max_bytes: int = 4 << 30) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._entries: dict[str, _Entry] = {}
        """Entries in order of use, the most recent last."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lease(self, data: Path) -> Iterator[str]:
        """Yield the name under `root` of a copy of `data`, which is kept until the context ends.

        Only directories and regular files are copied. A change of names, sizes or times causes a new copy.

        Raises:
          OSError: `data` cannot be read, or the store's disk is full.
        """
        name = _fingerprint(data)
        with self._lock:
            known = self._entries.pop(name, None)
            entry = self._entries[name] = known or _Entry()
            entry.users += 1
        try:
            if known is None:
                self._copy(data, name, entry)
            entry.copied.result()
            self._evict()
            yield name
        finally:
            with self._lock:
                entry.users -= 1

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep the copy called `name` until the context ends.

        Raises:
          FileNotFoundError: it was evicted.
        """
        with self._lock:
            if name not in self._entries:
                raise FileNotFoundError(f"the copy {name} of a task's data was evicted")
            entry = self._entries[name]
            entry.users += 1
        try:
            yield
        finally:
            with self._lock:
                entry.users -= 1

    def _copy(self, data: Path, name: str, entry: _Entry) -> None:
        """Make the copy, and notify waiting threads."""
        try:
            entry.size_bytes = self._build(data, name)
        except BaseException as error:
            with self._lock:
                del self._entries[name]
            entry.copied.set_exception(error)
        else:
            entry.copied.set_result(None)

    def _build(self, data: Path, name: str) -> int:
        """Copy `data` to `name`; return the copy's size in bytes."""
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=self.root))
        size = 0
        try:
            for folder, _, files in os.walk(data):
                target = building / Path(folder).relative_to(data)
                target.mkdir(exist_ok=True)
                target.chmod(0o755)
                for file in files:
                    source = Path(folder, file)
                    if source.is_symlink() or not source.is_file():
                        continue
                    shutil.copyfile(source, target / file)
                    (target / file).chmod(0o644)
                    size += source.stat().st_size
            building.rename(self.root / name)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return size

    def _evict(self) -> None:
        evicted = []
        with self._lock:
            total = sum(entry.size_bytes for entry in self._entries.values())
            for name, entry in list(self._entries.items()):
                if total > self._max_bytes and not entry.users:
                    del self._entries[name]
                    total -= entry.size_bytes
                    evicted.append(self.root / f".evicted-{name}-{next(_SERIAL)}")
                    (self.root / name).rename(evicted[-1])
        for folder in evicted:
            shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(data: Path) -> str:
    """Hash path, names, sizes and times: cheap, and different after a file was replaced."""
    seen = hashlib.sha256(os.fsencode(data.resolve(strict=True)))
    for folder, folders, files in os.walk(data):
        folders.sort()
        for name in sorted(files):
            info = os.lstat(os.path.join(folder, name))
            identity = (folder, name, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            seen.update(repr(identity).encode("utf-8", errors="surrogateescape"))
    return seen.hexdigest()[:32]


class StateFolder:
    """Folder of one sandbox's data store. Creating it removes folders left by dead predecessors."""

    def __init__(self, user: int | None) -> None:
        base = Path(tempfile.gettempdir())
        remove_abandoned(_STATE_PREFIX, base)
        self._folder = OwnedFolder(_STATE_PREFIX, base)
        self.path = self._folder.path
        if user is not None:
            os.chown(self.path, -1, user)
            self.path.chmod(0o750)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._folder.close()
