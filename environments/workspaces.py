"""Workspaces of steps: restored from a snapshot, together with the task's own read-only files, and snapshot again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from environments.actions import edits
from environments.actions.files import shadows_of
from environments.files.blobs import Store
from environments.files.hostile import place, read_regular
from environments.files.owned import OwnedFolder, remove_abandoned
from environments.files.snapshots import Snapshots
from environments.tasks.task import PreparedTask

MAX_SCRIPT_BYTES = 256 << 10
MIN_SCRATCH_BYTES = 2 << 30
"""Minimum free memory for keeping workspaces in /dev/shm."""
_PREFIX = "mlagent-step-"
"""Prefix of the scratch folders, one for each step in flight."""
_NEVER_KEPT = ("data", "__pycache__", "*/__pycache__")
"""Paths excluded from snapshots: the mount point of the data, and byte code, which could stand for another source."""


class Workspaces:
    """Temporary workspaces on this host, one for each step in flight."""

    def __init__(self, store: Store, scratch: Path) -> None:
        """Delete what workers that were killed during a step left in `scratch`, where the workspaces will be."""
        self._store = store
        self.scratch = scratch
        remove_abandoned(_PREFIX, scratch)

    @contextlib.contextmanager
    def open(self, task: PreparedTask, snapshot: str) -> Iterator[Path]:
        """Yield a new folder with the snapshot's files and the task's own read-only files; delete it afterwards."""
        folder = OwnedFolder(_PREFIX, self.scratch)
        try:
            root = folder.path / "workspace"
            Snapshots(self._store).restore(snapshot, root)
            for name in read_only_files(task):
                place(root, name, (task.env / name).read_bytes())
            yield root
        finally:
            folder.close()


def snapshot(task: PreparedTask, root: Path, store: Store) -> str:
    """Store the workspace `root` without the task's own read-only files; return the snapshot's id.

    Raises:
      HostileFileError: the workspace cannot be kept.
    """
    excluded = (*task.spec.read_only, *shadows(task), *_NEVER_KEPT)
    return Snapshots(store).snapshot(root, exclude=excluded)


def shadows(task: PreparedTask) -> tuple[str, ...]:
    """Return globs of files that could shadow the task's read-only modules; actions and snapshots exclude them."""
    return shadows_of(tuple(read_only_files(task)), task.env)


def read_only_files(task: PreparedTask) -> list[str]:
    """Return the relative paths of the task's files that its read-only globs match."""
    paths = {path for pattern in task.spec.read_only for path in task.env.glob(pattern)}
    files = {inner for path in paths for inner in ([path] if path.is_file() else path.rglob("*")) if inner.is_file()}
    return sorted(path.relative_to(task.env).as_posix() for path in files)


def read_script(path: Path) -> str:
    """Read an entry script as text, as edits see it."""
    return edits.plain(read_regular(path, MAX_SCRIPT_BYTES).decode(errors="replace"))


def default_scratch() -> Path:
    """Return /dev/shm if it has plenty of space, else the temporary folder. TMPDIR always wins.

    Creating 50 files takes 0.3 ms in memory; on a full ext4 disk 10 to 70 ms were measured.
    """
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a folder of our own in it
    usable = "TMPDIR" not in os.environ and os.access(memory, os.W_OK | os.X_OK)
    if usable and shutil.disk_usage(memory).free >= MIN_SCRATCH_BYTES:
        return memory
    return Path(tempfile.gettempdir())
