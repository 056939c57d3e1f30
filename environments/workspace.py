"""Workspaces as content-addressed snapshots: what a state of the workspace is, and how it comes back.

A snapshot is a manifest in a blob store: every folder, file and symbolic link with its mode, the files' bytes by their
hash. Equal workspaces have equal ids, whoever made them. What a script leaves behind is hostile, so nothing is
followed: symbolic links are kept as text, FIFOs and devices are refused, sizes are capped before a byte is read.

    restore(id) -> apply the action -> run the script -> snapshot() -> id of the next state
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from environments.hostile import HostileFileError, create, path_errors, read_regular
from environments.protocol import canonical_json
from environments.store import CorruptBlobError, FolderStore, MissingBlobError, Store, StoreError

VERSION = 1
MAX_DEPTH = 32
"""Folders in folders."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a manifest."""

    path: str
    """Relative, with `/`, without `..`."""
    kind: str
    """`folder`, `file` or `link`."""
    mode: int = 0
    """Permission bits, without set-uid, set-gid and sticky."""
    blob: str = ""
    """Id of a file's bytes."""
    target: str = ""
    """Text of a symbolic link."""


@dataclasses.dataclass(frozen=True)
class Collection:
    """What a garbage collection did."""

    deleted: int
    """Blobs."""
    freed_bytes: int
    kept_bytes: int


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """Snapshots in a blob store. The caps are those of one snapshot."""

    store: Store
    max_files: int = 2000
    max_file_bytes: int = 64 << 20
    max_bytes: int = 128 << 20

    def snapshot(self, directory: Path, exclude: Sequence[str] = ()) -> str:
        """Store what is in `directory`, less the paths that match a glob of `exclude`, and return the snapshot's id.

        A glob is matched against the relative path; a folder that matches is left out with all it holds.

        Raises:
          HostileFileError: a FIFO, a device, a name that is not UTF-8, or more than a cap allows.
          StoreError: the store cannot take it.
        """
        entries: list[dict[str, Any]] = []
        size = 0
        for path, item in list(self._walk(directory, exclude)):  # The count is known before anything is read.
            status = item.stat(follow_symlinks=False)
            mode = stat.S_IMODE(status.st_mode) & 0o777 | 0o600  # This host must be able to handle what it restores.
            if stat.S_ISDIR(status.st_mode):
                entry = Entry(path, "folder", mode | 0o100)
            elif stat.S_ISLNK(status.st_mode):
                entry = Entry(path, "link", target=_text(os.readlink(item.path)))
            elif stat.S_ISREG(status.st_mode):
                size += status.st_size
                if size > self.max_bytes:
                    raise HostileFileError(f"the workspace holds more than {self.max_bytes} bytes")
                entry = Entry(path, "file", mode, blob=self.store.put(read_regular(item.path, self.max_file_bytes)))
            else:
                raise HostileFileError(f"{path!r} is neither a file, a folder nor a symbolic link")
            entries.append({key: value for key, value in dataclasses.asdict(entry).items() if value != ""})
        entries.sort(key=lambda entry: entry["path"])
        return self.store.put(canonical_json({"version": VERSION, "entries": entries}).encode())

    def restore(self, identity: str, directory: Path) -> None:
        """Make the empty or missing folder `directory` hold the snapshot.

        Files are copies: a hard link would let a script write into the store. Symbolic links come last, so that
        nothing is written through one.

        Raises:
          StoreError: the snapshot is not in the store, or damaged.
        """
        directory.mkdir(parents=True, exist_ok=True)
        links: list[Entry] = []
        for entry in self.entries(identity):
            place = os.path.join(directory, entry.path)
            if entry.kind == "folder":
                os.mkdir(place)
                os.chmod(place, entry.mode)
            elif entry.kind == "file":
                create(place, self.store.get(entry.blob), entry.mode)
            else:
                links.append(entry)
        for entry in links:
            os.symlink(entry.target, os.path.join(directory, entry.path))

    def read(self, identity: str, path: str) -> bytes:
        """Bytes of one file of a snapshot, without restoring it.

        Raises:
          FileNotFoundError: the snapshot holds no such file.
        """
        for entry in self.entries(identity):
            if entry.path == path and entry.kind == "file":
                return self.store.get(entry.blob)
        raise FileNotFoundError(f"snapshot {identity} holds no file {path!r}")

    def entries(self, identity: str) -> list[Entry]:
        """The manifest, sorted by path, so that a folder comes before what it holds."""
        manifest = json.loads(self.store.get(identity))
        if manifest.get("version") != VERSION:
            raise CorruptBlobError(
                f"snapshot {identity} has version {manifest.get('version')!r}, this program reads {VERSION}"
            )
        entries = [Entry(**entry) for entry in manifest["entries"]]
        for entry in entries:
            if PurePosixPath(entry.path).is_absolute() or ".." in PurePosixPath(entry.path).parts:
                raise CorruptBlobError(
                    f"snapshot {identity} holds the path {entry.path!r}, which leads out of a workspace"
                )
        return entries

    def reachable(self, identity: str) -> set[str]:
        """Ids of all blobs that the snapshot needs, its own included."""
        return {identity, *(entry.blob for entry in self.entries(identity) if entry.kind == "file")}

    def is_whole(self, identity: str, blobs: Iterable[str] = (), known: str | None = None) -> bool:
        """Whether all blobs of a snapshot, and `blobs`, are in the store; those of the snapshot `known` surely are.

        Raises:
          StoreError: the store does not say.
        """
        try:
            needed = self.reachable(identity).union(blobs)
        except (MissingBlobError, CorruptBlobError):
            return False
        return not self.store.missing(needed - (self.reachable(known) if known else set()))

    def collect(
        self, roots: Iterable[str], max_bytes: int, blobs: Iterable[str] = (), min_age_seconds: float = 3600.0
    ) -> Collection:
        """Delete what nobody needs, the oldest first, until the store holds at most `max_bytes`.

        Args:
          roots: snapshots to keep, with all they reach.
          blobs: other blobs to keep (submissions of a run).
          min_age_seconds: what was put later stays: it may belong to a snapshot that is being taken.

        Raises:
          StoreError: a root is not in the store (nothing is deleted then), or the store is no folder.
        """
        if not isinstance(self.store, FolderStore):
            raise StoreError(f"{self.store.url} is not a folder: let the bucket's own lifecycle rules delete by age")
        kept = set(blobs).union(*(self.reachable(root) for root in roots))
        found = sorted(self.store.blobs(), key=lambda blob: blob.modified)
        size = sum(blob.size for blob in found)
        deleted = freed = 0
        newest = time.time() - min_age_seconds
        for blob in found:
            if size - freed <= max_bytes or blob.modified > newest:
                break
            if blob.id not in kept:
                self.store.delete(blob.id)
                deleted += 1
                freed += blob.size
        return Collection(deleted, freed, size - freed)

    def _walk(self, directory: Path, exclude: Sequence[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Every path in `directory` that is not excluded, nothing followed."""
        pending = [("", os.fspath(directory))]
        count = 0
        while pending:
            prefix, folder = pending.pop()
            with path_errors(HostileFileError, f"the folder {prefix!r} cannot be read"), os.scandir(folder) as items:
                for item in items:
                    path = _text(f"{prefix}{item.name}")
                    if any(fnmatch.fnmatchcase(path, pattern) for pattern in exclude):
                        continue
                    count += 1
                    if count > self.max_files:
                        raise HostileFileError(f"the workspace holds more than {self.max_files} files")
                    yield path, item
                    if item.is_dir(follow_symlinks=False):
                        if path.count("/") >= MAX_DEPTH:
                            raise HostileFileError(f"folders lie more than {MAX_DEPTH} deep in each other")
                        pending.append((f"{path}/", item.path))


def _text(name: str) -> str:
    """A name as the file system gives it, if it is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise HostileFileError(f"the name {name!r} is not UTF-8") from error
    return name
