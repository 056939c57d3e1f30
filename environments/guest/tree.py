"""The walk over files that a script may have left, and its limits, for snapshots and transfers.

No link is followed and no file is opened. Anything that a workspace cannot hold (a FIFO, a link that leads out, a path
beyond a limit) is refused with its reason. Refusals are counted by reason, so a report stays small. Standard library
only: this module also runs inside the sandboxes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

MAX_DEPTH = 32
"""Maximum nesting of folders."""
MAX_PATH_BYTES = 512
"""Maximum length of a path below the workspace and of a link; below any host folder it fits the kernel's 4,096."""
MAX_FILES = 2000
"""Maximum number of files, folders and links of a workspace that are kept for the next step."""
MAX_FILE_BYTES = 64 << 20
MAX_BYTES = 128 << 20
"""Maximum total size of the kept files."""
MAX_INODES = 4096
"""Maximum files, folders and links in a sandbox: kept ones, the task's own files, and a script's temporary ones."""
TOO_LARGE, TOO_MANY = "too many bytes", "too many files"
TOO_DEEP, TOO_LONG = f"more than {MAX_DEPTH} folders deep", f"a path of more than {MAX_PATH_BYTES} bytes"
NOT_TEXT, LEADS_OUT = "a name that is not UTF-8", "a symbolic link that leads out of its folder"
ODD, UNREADABLE = "neither file, folder nor link", "unreadable"
LIMITS = frozenset({TOO_LARGE, TOO_MANY, TOO_DEEP, TOO_LONG})
"""Reasons that are limits; other reasons are about the kind."""
_SHOWN = 80
"""Characters of a refused path in a report."""
_PAGE = 4096


class Entry(NamedTuple):
    """One path of a tree."""

    path: str
    """Relative path, with `/`, without `..`."""
    kind: str
    """`f` (file), `d` (folder) or `l` (symbolic link)."""
    mode: int
    """Permission bits, without set-uid, set-gid and sticky."""
    size: int = 0
    """Size of a file in bytes."""
    target: str = ""
    """Target of a symbolic link."""


class Refused(NamedTuple):
    """Paths that were refused for one reason."""

    path: str
    """First of these paths, shortened."""
    why: str
    count: int

    def __str__(self) -> str:
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return f"{self.path!r}{more}: {self.why}"


def unfit(path: str, folder: bool = False) -> str | None:
    """Return why no workspace may hold a path like this, or None."""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        return NOT_TEXT
    if length > MAX_PATH_BYTES:
        return TOO_LONG
    return TOO_DEEP if path.count("/") >= MAX_DEPTH + (not folder) else None


def unfit_link(target: str) -> str | None:
    """Return why no workspace may hold a symbolic link with this target, or None: it must lead below its own folder."""
    if not target or target.startswith("/") or ".." in target.split("/") or "\0" in target:
        return LEADS_OUT
    why = unfit(target)
    return None if why == TOO_DEEP else why


def walk(
    root: str,
    left_out: Callable[[str], bool],
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> tuple[list[Entry], list[Refused]]:
    """List the entries under `root`, a folder before its contents, and the refused paths.

    Args:
      root: a folder that no other process changes meanwhile.
      left_out: whether to skip a path, which is then neither listed nor refused; a folder is skipped with its contents.
      max_files: bound on the number of entries.
      max_bytes: bound on the sum of apparent file sizes, so that sparse files count in full.
      max_file_bytes: bound on the size of each file.
    """
    entries: list[Entry] = []
    refused: dict[str, Refused] = {}
    total = 0

    def refuse(path: str, why: str) -> None:
        first = refused.get(why, Refused(path[:_SHOWN], why, 0))
        refused[why] = first._replace(count=first.count + 1)

    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError:
            refuse(folder, UNREADABLE)
            continue
        for item in items:
            path = f"{folder}/{item.name}" if folder else item.name
            if left_out(path):
                continue
            if why := unfit(path):  # Before any system call on this path.
                refuse(path, why)
                continue
            if len(entries) >= max_files:
                refuse(path, TOO_MANY)
                return entries, list(refused.values())
            entry = _inspect(item, path)
            if isinstance(entry, str):
                refuse(path, entry)
            elif entry.size > max_file_bytes or total + entry.size > max_bytes:
                refuse(path, TOO_LARGE)
            else:
                total += entry.size
                entries.append(entry)
                if entry.kind == "d":
                    pending.append(path)
    return entries, list(refused.values())


def _inspect(item: os.DirEntry[str], path: str) -> Entry | str:
    """Return the entry of a path, or why it is refused."""
    try:
        info = item.stat(follow_symlinks=False)
        mode = stat.S_IMODE(info.st_mode) & 0o777
        if stat.S_ISDIR(info.st_mode):
            return unfit(path, folder=True) or Entry(path, "d", mode)
        if stat.S_ISLNK(info.st_mode):
            target = os.readlink(item.path)
            return unfit_link(target) or Entry(path, "l", mode, target=target)
        if stat.S_ISREG(info.st_mode):
            return Entry(path, "f", mode, info.st_size) if os.access(item.path, os.R_OK) else UNREADABLE
    except OSError:
        return UNREADABLE
    return ODD


def room(entries: list[Entry]) -> int:
    """Return the bytes that the entries take in a memory file system, which allocates pages."""
    return sum(_PAGE + -(-entry.size // _PAGE) * _PAGE for entry in entries)
