"""Folders that appear under their name only when they are complete, local or in a bucket."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath


@contextlib.contextmanager
def whole_folder(directory: str | os.PathLike[str], mark: str = "config.json") -> Iterator[Path]:
    """Yield a local folder to write into; it becomes `directory` when the block ends without an error.

    Args:
      directory: folder to make, local or remote. A remote store cannot rename, so `mark` is written last there.
      mark: file that identifies an older folder of that name as an export, which may be replaced.

    Raises:
      FileExistsError: `directory` exists and is not an export.
    """
    target = epath.Path(directory)
    begun = target / f"{mark}.partial"
    if target.exists() and any(target.iterdir()) and not ((target / mark).exists() or begun.exists()):
        raise FileExistsError(f"{target} is there and is no export: choose another directory, or empty it")
    if "://" in os.fspath(directory):
        with tempfile.TemporaryDirectory() as local:
            yield Path(local)
            target.mkdir(parents=True, exist_ok=True)
            begun.write_text("")  # If this export is cut short, the next one may replace it.
            for path in sorted(Path(local).iterdir(), key=lambda path: path.name == mark):
                epath.Path(path).copy(target / path.name, overwrite=True)
            begun.unlink()
        return
    final = Path(directory).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        draft.chmod(0o755)
        yield draft
        if final.exists():
            older = Path(tempfile.mkdtemp(prefix=f".{final.name}-old-", dir=final.parent))
            final.rename(older / final.name)
            draft.rename(final)
            shutil.rmtree(older)
        else:
            draft.rename(final)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
