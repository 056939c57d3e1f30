"""Files in a folder that an untrusted script has written: handled without following, waiting or reading too much.

`workspace` takes snapshots through this module, `actions.files` reads and writes for the agent, and the environment
takes the submission. No process of the script is alive by then, so nothing changes while it is looked at.
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
    """What lies there is not an ordinary file or folder of ordinary size; the message says what, without host paths."""


@contextlib.contextmanager
def path_errors(error_type: type[Exception], message: str) -> Iterator[None]:
    """Turn system errors that the path itself causes into `error_type(message)`.

    Any other error (a full disk, no descriptors left) is this host's, and passes as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_PATH:
            raise error_type(message) from error
        raise


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Bytes of a file, opened once: never through a symbolic link, never a FIFO or device, never more than asked.

    Raises:
      HostileFileError: it is missing, not a regular file, not readable, or larger than `max_bytes`.
    """
    name = os.path.basename(path)
    with path_errors(HostileFileError, f"{name!r} is not a file that can be read"):
        # O_NONBLOCK: opening a FIFO that nobody writes would wait for ever.
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
    """Write a new file of exactly this mode; whatever exists there already is an error, a symbolic link included."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)  # Whatever the umask is.
        file.write(data)


def place(root: Path, path: str, data: bytes, mode: int = 0o644) -> None:
    """Put a file into `root`, whatever is in its way there: links and files on the way are replaced by folders."""
    folder = root
    for part in PurePosixPath(path).parent.parts:
        folder = folder / part
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
            folder.mkdir()
    remove(root / path)
    create(root / path, data, mode)


def remove(path: Path) -> None:
    """Delete whatever is at `path`, following nothing; a missing path is fine, so is a file where its folder was."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
    else:
        remove_folder(path)


def remove_folder(path: Path) -> None:
    """Delete a folder with all it holds, also where the script took its owner's permissions away."""
    for folder, folders, _ in os.walk(path):  # Top down: a folder is opened up before it is entered.
        for name in folders:
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                with contextlib.suppress(PermissionError):  # Another user's; rmtree says so if it matters.
                    os.chmod(inner, 0o700)
    shutil.rmtree(path, onerror=_ignore_missing)


def _ignore_missing(function: Callable[..., Any], path: str, error: tuple[Any, ...]) -> None:
    del function, path
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
