"""Whole-file writes and locks in a workdir, local or in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from etils import epath

from mlagent_jax.runtime.errors import ConfigError


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
