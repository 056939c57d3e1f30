"""Whole-file writes, locks and careful reads of files, local or in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from mlagent_jax.runtime.errors import ConfigError

_LFS_POINTER = b"version https://git-lfs"


def refuse_pointer(path: epath.Path) -> None:
    """Check that a file is the file itself.

    Raises:
      ValueError: it is the pointer that Git LFS leaves where it has not downloaded a file; the message names it.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer and not the file: run `git lfs pull` in its repository")


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object from a file that others wrote; a byte-order mark is passed over.

    Raises:
      ValueError: the file holds no whole JSON object; the message names it.
    """
    refuse_pointer(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} and not an object: download it again")
    return value


def write_whole(path: epath.PathLike, data: str | bytes) -> epath.Path:
    """Write a file, or leave what was there: a reader never sees a half.

    Args:
      path: local path or URL; its folder is made where it is missing.
      data: the whole content.

    Returns:
      The path.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    partial.replace(path)
    return path


@contextlib.contextmanager
def sole_writer(folder: epath.PathLike, remedy: str) -> Iterator[None]:
    """Hold the lock file of a local folder; the operating system frees it when the process ends, however it ends.

    Args:
      folder: local folder; one with a URL has no lock.
      remedy: sentence for the user whose process comes second.

    Raises:
      ConfigError: another process holds the lock.
    """
    if "://" in os.fspath(folder):
        yield
        return
    with open(epath.Path(folder) / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process writes to {folder}: {remedy}") from error
        yield
