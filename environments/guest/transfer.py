"""The stream format of a workspace between host and sandbox, in both directions.

A sandbox's output is hostile, so this is not tar. The index is checked as a whole before anything is written; the
contents follow in its order.

    8 bytes    length of the index, big-endian
    index      JSON: {"entries": [[path, kind, mode, size or target], ...], "refused": [[path, why, count], ...]}
    contents   of the files, in the order of the index

`tree` defines the kinds and what is allowed; the unpacker enforces it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from typing import BinaryIO, NamedTuple

from . import tree
from .tree import Entry, Refused

MAX_INDEX_BYTES = 32 << 20
"""Maximum size of an index: more than any tree within the limits needs, however its names are encoded in JSON."""
MAX_ENTERING_BYTES = 1 << 30
"""Maximum total size of the files that an execution starts with, without task data."""
_CHUNK = 1 << 20
_MOST_REFUSED = 16
"""Maximum number of reasons in an index; a packer has fewer."""


class TransferError(ValueError):
    """A stream that violates the format or its bounds."""


class Packed(NamedTuple):
    """Result of packing."""

    refused: list[Refused]
    room: int
    """Bytes of memory that the unpacked tree takes."""


def pack(
    root: str, stream: BinaryIO, max_bytes: int = MAX_ENTERING_BYTES, skip: frozenset[str] = frozenset()
) -> Packed:
    """Write the tree under `root` to `stream`; follow no link and open only regular files.

    Args:
      root: the workspace.
      stream: output stream.
      max_bytes: bound on the sum of apparent file sizes; a file beyond it is refused (sparse files).
      skip: top-level names to leave out.
    """
    entries, refused = tree.walk(root, skip.__contains__, tree.MAX_INODES, max_bytes, max_bytes)
    lines = [(path, kind, mode, target if kind == "l" else size) for path, kind, mode, size, target in entries]
    index = json.dumps({"entries": lines, "refused": refused}).encode()
    stream.write(len(index).to_bytes(8, "big") + index)
    for entry in entries:
        if entry.kind == "f":
            _copy_out(os.path.join(root, entry.path), entry.size, stream)
    return Packed(refused, tree.room(entries))


def _copy_out(path: str, size: int, stream: BinaryIO) -> None:
    """Write exactly `size` bytes of the file, even if it changed since it was listed."""
    remaining = size
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while remaining and stat.S_ISREG(os.fstat(descriptor).st_mode):
                chunk = os.read(descriptor, min(remaining, _CHUNK))
                if not chunk:
                    break
                stream.write(chunk)
                remaining -= len(chunk)
        finally:
            os.close(descriptor)
    while remaining:
        padding = bytes(min(remaining, _CHUNK))
        stream.write(padding)
        remaining -= len(padding)


def unpack(stream: BinaryIO, root: str, max_bytes: int, keep: frozenset[str] = frozenset()) -> list[Refused]:
    """Replace the tree under `root` with the stream's.

    The whole stream is checked and read before anything is deleted: after an error the tree is unchanged.

    Args:
      stream: output of `pack`, or hostile data.
      root: an existing directory that no other process changes meanwhile.
      max_bytes: bound on the sum of file sizes.
      keep: top-level names that are neither deleted nor written.

    Returns:
      The packer's refusals.

    Raises:
      TransferError: the stream violates the format or its bounds.
    """
    entries, refused = _read_index(stream, max_bytes, keep)
    draft = tempfile.mkdtemp(prefix=".unpack-", dir=root)
    try:
        for entry in entries:
            if entry.kind == "d":
                os.mkdir(os.path.join(draft, entry.path), 0o700 | entry.mode)
            elif entry.kind == "f":
                _copy_in(stream, os.path.join(draft, entry.path), entry.mode, entry.size)
        for entry in entries:
            if entry.kind == "l":  # last, so that no file is written through one
                os.symlink(entry.target, os.path.join(draft, entry.path))
        _clear(root, keep | {os.path.basename(draft)})
        for name in os.listdir(draft):
            os.rename(os.path.join(draft, name), os.path.join(root, name))
    finally:
        shutil.rmtree(draft)
    return refused


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    chunks = []
    while size:
        chunk = stream.read(min(size, _CHUNK))
        if not chunk:
            raise TransferError("the stream ends early")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _read_index(stream: BinaryIO, max_bytes: int, keep: frozenset[str]) -> tuple[list[Entry], list[Refused]]:
    length = int.from_bytes(_read_exactly(stream, 8), "big")
    if length > MAX_INDEX_BYTES:
        raise TransferError(f"index of {length} bytes")
    try:
        index = json.loads(_read_exactly(stream, length))
        entries = [_entry(*fields) for fields in index["entries"]]
        refused = [Refused(str(path), str(why), int(count)) for path, why, count in index["refused"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TransferError(f"index: {error}") from error
    if len(entries) > tree.MAX_INODES or len(refused) > _MOST_REFUSED:
        raise TransferError(f"{len(entries)} files, {len(refused)} reasons")
    folders, seen = {""}, set()
    for path, kind, _, _, _ in entries:
        folder, _, name = path.rpartition("/")
        if name in ("", ".", "..") or "\0" in path or folder not in folders or path in seen or path in keep:
            raise TransferError(f"path {path!r}")
        seen.add(path)
        if kind == "d":
            folders.add(path)
    if (total := sum(entry.size for entry in entries)) > max_bytes:
        raise TransferError(f"{total} bytes where {max_bytes} are allowed")
    return entries, refused


def _entry(path: object, kind: object, mode: object, detail: object) -> Entry:
    """Return one line of an index, if `tree.walk` could have made it."""
    if not isinstance(path, str) or type(mode) is not int or kind not in ("f", "d", "l"):
        raise ValueError(f"entry {path!r} of kind {kind!r}")
    entry = Entry(path, kind, mode & 0o777, *((0, detail) if kind == "l" else (detail,)))
    if type(entry.size) is not int or entry.size < 0 or not isinstance(entry.target, str):
        raise ValueError(f"size or target of {path!r}: {detail!r}")
    if why := tree.unfit(path, kind == "d") or (kind == "l" and tree.unfit_link(entry.target)):
        raise ValueError(f"{path[:100]!r}: {why}")
    return entry


def _clear(root: str, keep: frozenset[str]) -> None:
    with os.scandir(root) as listing:
        for entry in listing:
            if entry.name in keep:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _copy_in(stream: BinaryIO, target: str, mode: int, size: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(target, flags, 0o600)
    try:
        remaining = size
        while remaining:
            chunk = _read_exactly(stream, min(remaining, _CHUNK))
            remaining -= len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, (mode & 0o777) | 0o600)
    finally:
        os.close(descriptor)
