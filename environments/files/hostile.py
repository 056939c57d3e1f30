"""Handling of files that an untrusted script has written: no link is followed, no read blocks or is unbounded.

`files.snapshots` takes snapshots through this module, `actions.files` reads and writes for the agent, and the
environment reads the submission. By then all processes of the script are dead, so nothing changes concurrently.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

_OF_THE_PATH = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,
    }
)


class HostileFileError(ValueError):
    """Not an ordinary file or folder of ordinary size. The message says why, without host paths."""


@contextlib.contextmanager
def path_errors(error_type: type[Exception], message: str) -> Iterator[None]:
    """Convert system errors that the path itself causes into `error_type(message)`.

    Any other error (a full disk, no free descriptors) is the host's and passes unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_PATH:
            raise error_type(message) from error
        raise


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a file, opened once: never through a symbolic link, never a FIFO or device, never more than `max_bytes`.

    Raises:
      HostileFileError: it is missing, not a regular file, not readable, or larger than `max_bytes`.
    """
    name = os.path.basename(path)
    with path_errors(HostileFileError, f"{name!r} is not a file that can be read"):
        # O_NONBLOCK: opening a FIFO without a writer would block for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise HostileFileError(f"{name!r} is not a regular file")
        if status.st_size > max_bytes:
            raise HostileFileError(f"{name!r} has {status.st_size} bytes, at most {max_bytes} are read")
        with open(handle, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(handle)


def create(path: str | os.PathLike[str], data: bytes, mode: int = 0o644) -> None:
    """Write a new file of exactly this mode. Anything that exists there is an error, a symbolic link included."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)  # Override the umask.
        file.write(data)


def place(root: Path, path: str, data: bytes, mode: int = 0o644) -> None:
    """Put a file into `root`. Folders replace links and files on the way."""
    folder = root
    for part in PurePosixPath(path).parent.parts:
        folder = folder / part
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
            folder.mkdir()
    remove(root / path)
    create(root / path, data, mode)


def remove(path: Path) -> None:
    """Delete anything at `path`, following no link. A missing path is fine, as is a file in place of its parent."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
    else:
        remove_folder(path)


def remove_folder(path: Path) -> None:
    """Delete a folder and its contents, even if the script removed the owner's permissions."""
    for folder, folders, _ in os.walk(path):  # Top down: restore a folder's permissions before entering it.
        for name in folders:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                with contextlib.suppress(PermissionError):  # Another user's folder; rmtree reports it if it matters.
                    os.chmod(inner, 0o700)
    shutil.rmtree(path, onerror=_ignore_missing)


def _ignore_missing(function: Callable[..., Any], path: str, error: tuple[Any, ...]) -> None:
    del function, path
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
