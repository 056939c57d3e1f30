"""Workspaces as content-addressed snapshots.

A snapshot is a manifest in a blob store: every folder, file and symbolic link with its mode, and the hashes of the
files' bytes. Equal workspaces have equal ids, on every host. The contents are hostile. `guest.tree` walks them
for snapshots as for sandboxes, so a workspace that is kept can always enter a sandbox again.

    restore(id) -> apply the action -> run the script -> snapshot() -> id of the next state
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from environments.files.blobs import ID, CorruptBlobError, MissingBlobError, Store
from environments.files.hostile import HostileFileError, create, read_regular
from environments.guest import tree
from environments.protocol import canonical_json

VERSION = 1
_MANIFEST = b'{"entries":'
"""Start of a manifest, in canonical JSON."""
_KINDS = {"d": "folder", "f": "file", "l": "link"}
"""Kinds in a manifest, by the kinds of `tree`."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a manifest."""

    path: str
    """Relative path, with `/`, without `..`."""
    kind: str
    """`folder`, `file` or `link`."""
    mode: int = 0
    """Permission bits, without set-uid, set-gid and sticky."""
    blob: str = ""
    """Id of a file's bytes."""
    target: str = ""
    """Target of a symbolic link."""


@dataclasses.dataclass(frozen=True)
class Collected:
    """Result of a garbage collection."""

    deleted: int
    """Number of deleted blobs."""
    freed_bytes: int
    kept_bytes: int


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """Snapshots in a blob store. The limits are per snapshot."""

    store: Store
    max_files: int = tree.MAX_FILES
    max_file_bytes: int = tree.MAX_FILE_BYTES
    max_bytes: int = tree.MAX_BYTES

    def snapshot(self, directory: Path, exclude: Sequence[str] = ()) -> str:
        """Store the contents of `directory`, without paths that match a glob of `exclude`; return the snapshot's id.

        A glob is matched against the relative path. A folder that matches is excluded with its contents.

        Raises:
          HostileFileError: `tree.walk` refuses the contents.
          StoreError: the store cannot be written.
        """

        def left_out(path: str) -> bool:
            return any(fnmatch.fnmatchcase(path, pattern) for pattern in exclude)

        bounds = (self.max_files, self.max_bytes, self.max_file_bytes)
        items, refused = tree.walk(os.fspath(directory), left_out, *bounds)  # Before any file is read.
        if refused:
            raise HostileFileError("; ".join(map(str, refused)))
        entries: list[dict[str, Any]] = []
        for path, kind, mode, _, target in items:
            # Whatever is restored must be accessible to this host.
            mode = {"d": mode | 0o700, "f": mode | 0o600, "l": 0}[kind]
            entry = Entry(path, _KINDS[kind], mode, target=target)
            if kind == "f":
                data = read_regular(directory / path, self.max_file_bytes)
                entry = dataclasses.replace(entry, blob=self.store.put(data))
            entries.append({key: value for key, value in dataclasses.asdict(entry).items() if value != ""})
        entries.sort(key=lambda entry: entry["path"])
        return self.store.put(canonical_json({"version": VERSION, "entries": entries}).encode())

    def restore(self, identity: str, directory: Path) -> None:
        """Restore the snapshot into the empty or missing folder `directory`.

        Files are copies: a hard link would let a script write into the store. Symbolic links come last, so that nothing
        is written through one.

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
        """Read one file of a snapshot, without restoring it.

        Raises:
          FileNotFoundError: the snapshot holds no such file.
        """
        for entry in self.entries(identity):
            if entry.path == path and entry.kind == "file":
                return self.store.get(entry.blob)
        raise FileNotFoundError(f"snapshot {identity} holds no file {path!r}")

    def entries(self, identity: str) -> list[Entry]:
        """Return the manifest, sorted by path, so that a folder comes before its contents."""
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
        """Return the ids of all blobs that the snapshot needs, its own included."""
        return {identity, *(entry.blob for entry in self.entries(identity) if entry.kind == "file")}

    def is_whole(self, identity: str, blobs: Iterable[str] = (), known: str | None = None) -> bool:
        """Check whether all blobs of a snapshot, and `blobs`, are in the store. Blobs of the snapshot `known` are not
        checked.

        Raises:
          StoreError: the store does not respond.
        """
        try:
            needed = self.reachable(identity).union(blobs)
        except (MissingBlobError, CorruptBlobError):
            return False
        return not self.store.missing(needed - (self.reachable(known) if known else set()))

    def in_use(self, names: Iterable[str]) -> set[str]:
        """Return the ids of the blobs among `names` and of all blobs that these need.

        A snapshot needs its files, a stored job or outcome every blob that it names. Names that are not blobs here are
        skipped.

        Raises:
          StoreError: a blob cannot be read.
        """
        kept: set[str] = set()
        pending = {name for name in names if ID.fullmatch(name)}
        while pending:
            missing = self.store.missing(pending)
            named: set[str] = set()
            for identity in pending - missing:
                data = self.store.get(identity)
                ids = ID.findall(data.decode(errors="replace")) if data.startswith(b"{") else []
                # The files of a snapshot are not searched for ids.
                (kept if data.startswith(_MANIFEST) else named).update(ids)
            kept |= pending - missing
            pending = named - kept
        return kept

    def collect(self, kept: Collection[str], max_bytes: int = 0, min_age_seconds: float = 3600.0) -> Collected:
        """Delete unneeded blobs, oldest first, until the store holds at most `max_bytes`.

        Args:
          kept: ids of the blobs to keep, see `in_use`.
          min_age_seconds: minimum age of deleted blobs: a newer one may belong to a snapshot in progress.

        Raises:
          StoreError: the store cannot be listed, or a blob cannot be deleted.
        """
        blobs = sorted(self.store.blobs(), key=lambda blob: blob.modified)
        size = sum(blob.size for blob in blobs)
        deleted = freed = 0
        newest = time.time() - min_age_seconds
        for blob in blobs:
            if size - freed <= max_bytes or blob.modified > newest:
                break
            if blob.id not in kept:
                self.store.delete(blob.id)
                deleted += 1
                freed += blob.size
        return Collected(deleted, freed, size - freed)
