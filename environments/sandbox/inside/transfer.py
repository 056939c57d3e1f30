"""A workspace as one stream: how files travel between the host and a sandbox, in both directions.

What comes out of a sandbox is hostile, so this is not tar: an index that is checked as a whole before a byte is
written, then the contents in its order.

    8 bytes    length of the index, big-endian
    index      JSON: {"entries": [[path, kind, mode, size or target], ...], "refused": [[path, why], ...]}
    contents   of the files, in the order of the index

Kinds are `f` (file), `d` (directory) and `l` (symbolic link). A link that could lead out of the workspace, a FIFO, a
socket and a device are refused by the packer and again by the unpacker.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from typing import BinaryIO

MAX_FILES = 4096
"""Files and directories in a workspace; also the number of inodes a script may use."""
MAX_DEPTH = 32
MAX_INDEX_BYTES = 32 << 20
TOO_LARGE, TOO_MANY, TOO_DEEP = "too many bytes", "too many files", "too many directories deep"
LIMITS = frozenset({TOO_LARGE, TOO_MANY, TOO_DEEP})
"""Why something was refused, where a limit is the reason; other reasons are about its kind."""
_CHUNK = 1 << 20


class TransferError(ValueError):
    """A stream that does not keep to the format or its bounds."""


def safe_link(target: str) -> bool:
    """Whether a symbolic link can only lead to a place beneath its own directory."""
    return bool(target) and not target.startswith("/") and ".." not in target.split("/")


def pack(root: str, stream: BinaryIO, max_bytes: int, skip: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """Write the tree under `root` to `stream`, following no link and opening nothing but regular files.

    Args:
      root: the workspace.
      stream: where to.
      max_bytes: bound on the sum of apparent file sizes; a file beyond it is refused (sparse files).
      skip: names at the top level that do not travel.

    Returns:
      (path, why) of what was refused.
    """
    entries: list[tuple[str, str, int, int | str]] = []
    refused: list[tuple[str, str]] = []
    total = 0
    pending = [("", 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as listing:
                found = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            refused.append((folder, f"unreadable directory: {error.strerror}"))
            continue
        for entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if path in skip:
                continue
            if len(entries) >= MAX_FILES:
                refused.append((path, TOO_MANY))
                pending.clear()
                break
            info = entry.stat(follow_symlinks=False)
            mode = stat.S_IMODE(info.st_mode) & 0o777
            if stat.S_ISREG(info.st_mode):
                if total + info.st_size > max_bytes:
                    refused.append((path, TOO_LARGE))
                elif not os.access(entry.path, os.R_OK):
                    refused.append((path, "unreadable file"))
                else:
                    total += info.st_size
                    entries.append((path, "f", mode, info.st_size))
            elif stat.S_ISDIR(info.st_mode):
                if depth + 1 >= MAX_DEPTH:
                    refused.append((path, TOO_DEEP))
                else:
                    entries.append((path, "d", mode, 0))
                    pending.append((path, depth + 1))
            elif stat.S_ISLNK(info.st_mode):
                target = os.readlink(entry.path)
                if safe_link(target):
                    entries.append((path, "l", mode, target))
                else:
                    refused.append((path, "symbolic link that leads out of its directory"))
            else:
                refused.append((path, "neither file, directory nor link"))
    index = json.dumps({"entries": entries, "refused": refused}).encode()
    stream.write(len(index).to_bytes(8, "big") + index)
    for path, kind, _, size in entries:
        if kind == "f":
            _copy_out(os.path.join(root, path), int(size), stream)
    return refused


def _copy_out(path: str, size: int, stream: BinaryIO) -> None:
    """Exactly `size` bytes of the file, whatever became of it since it was listed."""
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


def unpack(stream: BinaryIO, root: str, max_bytes: int, keep: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """Make the tree under `root` what `stream` says, deleting whatever else is there.

    The whole index is checked first: after an error the tree is as it was.

    Args:
      stream: what `pack` wrote, or anything hostile that claims to be.
      root: an existing directory that nobody else changes meanwhile.
      max_bytes: bound on the sum of file sizes.
      keep: names at the top level that are neither deleted nor written.

    Returns:
      (path, why) of what the packer refused.

    Raises:
      TransferError: the stream does not keep to the format or its bounds.
    """
    entries, refused = _read_index(stream, max_bytes, keep)
    _clear(root, keep)
    links: list[tuple[str, str]] = []
    for path, kind, mode, detail in entries:
        target = os.path.join(root, path)
        if kind == "d":
            os.mkdir(target, 0o700 | mode)
        elif kind == "l":
            links.append((target, detail))  # last, so that no file is ever written through one
        else:
            _copy_in(stream, target, mode, detail)
    for target, detail in links:
        os.symlink(detail, target)
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


def _read_index(
    stream: BinaryIO, max_bytes: int, keep: frozenset[str]
) -> tuple[list[tuple[str, str, int, int | str]], list[tuple[str, str]]]:
    length = int.from_bytes(_read_exactly(stream, 8), "big")
    if length > MAX_INDEX_BYTES:
        raise TransferError(f"index of {length} bytes")
    try:
        index = json.loads(_read_exactly(stream, length))
        entries = [(str(path), str(kind), int(mode), detail) for path, kind, mode, detail in index["entries"]]
        refused = [(str(path), str(why)) for path, why in index["refused"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TransferError(f"index: {error}") from error
    if len(entries) > MAX_FILES:
        raise TransferError(f"{len(entries)} files")
    directories, seen, total = {""}, set(), 0
    for path, kind, _, detail in entries:
        folder, _, name = path.rpartition("/")
        if name in ("", ".", "..") or "\0" in path or folder not in directories or path in seen or path in keep:
            raise TransferError(f"path {path!r}")
        seen.add(path)
        if kind == "d":
            if path.count("/") >= MAX_DEPTH:
                raise TransferError(f"path {path!r} is too deep")
            directories.add(path)
        elif kind == "l":
            if not isinstance(detail, str) or "\0" in detail or not safe_link(detail):
                raise TransferError(f"link {path!r} to {detail!r}")
        elif kind == "f":
            if not isinstance(detail, int) or detail < 0:
                raise TransferError(f"size of {path!r}: {detail!r}")
            total += detail
        else:
            raise TransferError(f"kind {kind!r} of {path!r}")
    if total > max_bytes:
        raise TransferError(f"{total} bytes where {max_bytes} are allowed")
    return entries, refused


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
