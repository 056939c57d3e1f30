"""Atomic writes, locks and checked reads of files, local or in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from typing import Any

from etils import epath

from mlagent_jax.runtime.errors import ConfigError

_LFS_POINTER = b"version https://git-lfs"


def refuse_pointer(path: epath.Path) -> None:
    """Check that a file is not a Git LFS pointer.

    Raises:
      ValueError: It is the pointer of a file that Git LFS has not downloaded; the message names it.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in its repository")


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object from an external file; a byte-order mark is skipped.

    Raises:
      ValueError: The file holds no complete JSON object; the message names it.
    """
    refuse_pointer(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not complete JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object: download it again")
    return value


def write_whole(path: epath.PathLike, data: str | bytes) -> epath.Path:
    """Write a file atomically: a reader sees the old content or the new one, however many write it at once.

    Args:
      path: Local path or URL; missing folders are created.
      data: Whole content.

    Returns:
      The path.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{path.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return path


@contextlib.contextmanager
def one_at_a_time(path: os.PathLike[str]) -> Iterator[None]:
    """Hold a local lock file, which stays; wait while another process or thread holds it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def sole_writer(folder: epath.PathLike, remedy: str) -> Iterator[None]:
    """Hold the lock file of a local folder, and remove it in the end.

    The operating system releases the lock when the process ends in any way; the file may stay then, and locks nothing.

    Args:
      folder: Local folder; one with a URL has no lock.
      remedy: Sentence for the user whose process comes second.

    Raises:
      ConfigError: Another process holds the lock.
    """
    if "://" in os.fspath(folder):
        yield
        return
    path = os.fspath(epath.Path(folder) / ".lock")
    with contextlib.ExitStack() as resources:
        while True:
            file = resources.enter_context(open(path, "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"another process writes to {folder}: {remedy}") from error
            # The last holder may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
