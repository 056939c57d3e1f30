"""Archives of published data sets, as a task's prepare.py reads them.

    with archives.open_archive(raw, "spooky-author-identification.zip") as archive:
        train = archive.table("train.csv", ["id", "text", "author"])

Files of nested archives (`train.csv.zip`, `train.zip`, `train.json.7z`) are found as if they lay beside them, so a
source may change how it packs its files. Nothing is unpacked to a path that the archive names. The source of an archive
is the field `archive` of task.yaml (`Origin`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import gzip
import io
import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from environments.tasks.task import TaskError

INSTALL = "pip install '.[archives]'"
"""Command that installs support for images and 7z archives. The host that prepares a task needs it, workers do not."""
ORIGINS = ("kaggle", "url", "tfds")
_NESTED = (".zip", ".7z")
_LARGEST = 8 << 30
"""Maximum size in bytes of one file of a 7z archive, which is held in memory."""


class ArchiveError(TaskError):
    """An archive or a file in it is missing or has changed; the message names it."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Source of the data."""

    kind: str
    """`kaggle`, `url` or `tfds`."""
    name: str
    """Name of the competition or data set, or the URL."""

    @property
    def file(self) -> str:
        """Name of the archive; empty if tensorflow-datasets manages the data."""
        return {"kaggle": f"{self.name}.zip", "url": PurePosixPath(self.name).name, "tfds": ""}[self.kind]

    def remedy(self, folder: Path) -> str:
        """Explain how to get the archive into `folder`."""
        if self.kind == "kaggle":
            return (
                f"accept the rules at https://www.kaggle.com/c/{self.name}/rules, then "
                f"`kaggle competitions download -c {self.name} -p {folder}`"
            )
        if self.kind == "url":
            return f"`curl -L --create-dirs -o {folder / self.file} {self.name}`"
        return "see docs/bring_your_own_task.md, Data from tensorflow-datasets"

    def require(self, folder: Path) -> None:
        """Check that the archive, or its unpacked files, are in `folder`.

        Raises:
          ArchiveError: they are not; the message has the command that fetches them.
        """
        if self.file and not (folder / self.file).is_file() and not _files(folder):
            raise ArchiveError(f"{folder / self.file} is not there: {self.remedy(folder)}")

    def fetch(self, folder: Path) -> str:
        """Download the archive into `folder` if it is missing, and return a message about the result.

        Raises:
          ArchiveError: the download failed; the message has the remedy.
        """
        if not self.file:
            raise ArchiveError(f"{self.name} is read through tensorflow-datasets: {self.remedy(folder)}")
        target = folder / self.file
        if target.is_file():
            return f"{target} is there already"
        folder.mkdir(parents=True, exist_ok=True)
        # Use another name until the download is complete, so that an interrupted one is not taken for the archive.
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as building:
            if self.kind == "kaggle":
                self._run_kaggle(Path(building))
            else:
                self._download(Path(building) / self.file)
            (Path(building) / self.file).rename(target)
        return f"{target}: {target.stat().st_size / 1e6:.1f} MB"

    def _run_kaggle(self, folder: Path) -> None:
        program = shutil.which("kaggle")
        if program is None:
            raise ArchiveError(f"the program `kaggle` is not installed: pip install kaggle; then {self.remedy(folder)}")
        command = [program, "competitions", "download", "-c", self.name, "-p", str(folder)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0 or not (folder / self.file).is_file():
            output = " ".join((done.stderr + done.stdout).split())[-300:]
            raise ArchiveError(
                f"kaggle gives no {self.file}: {output or 'nothing was said'}; put your API token into "
                f"~/.kaggle/kaggle.json and accept the rules at https://www.kaggle.com/c/{self.name}/rules"
            )

    def _download(self, target: Path) -> None:
        try:
            with urllib.request.urlopen(self.name, timeout=60) as source, target.open("wb") as file:  # noqa: S310
                shutil.copyfileobj(source, file)
        except OSError as error:
            raise ArchiveError(f"{self.name} cannot be downloaded: {error}") from error


def data_dir() -> Path:
    """Return the folder of archives, with a folder for each task: `MLAGENT_DATA_DIR`, else `data` in the cache."""
    named = os.environ.get("MLAGENT_DATA_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named).expanduser() if named else cache / "mlagent-jax" / "data"


class Archive:
    """The files of an archive and of nested archives, by path. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = contextlib.ExitStack()
        self._files: dict[str, Callable[[], bytes]] = {}
        self._nested: dict[str, Callable[[Path], None]] = {}
        """Functions that copy a nested archive to a file, by path; archives already opened are removed."""
        self._temporary = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="mlagent-archive-")))

    def __enter__(self) -> Archive:
        if self.path.is_dir():
            self._add_folder()
        else:
            self._add_zip(self.path, PurePosixPath())
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def names(self, pattern: str) -> list[str]:
        """Return the paths that end like `pattern`, a glob such as `train/*.jpg`, sorted.

        Raises:
          ArchiveError: no path matches.
        """
        self._open_nested(pattern)
        paths = self._matching(pattern)
        if not paths and self._nested:
            self._open_nested(None)
            paths = self._matching(pattern)
        if not paths:
            holds = ", ".join(sorted({name.partition("/")[0] for name in (*self._files, *self._nested)})[:12])
            raise ArchiveError(
                f"{self.path} holds no {pattern} (it holds {holds or 'nothing'}): it is not the archive that was "
                "expected, or its layout has changed"
            )
        return paths

    def read(self, name: str) -> bytes:
        """Read the file whose path ends with `name`; of several, the one with the fewest parent folders.

        Raises:
          ArchiveError: there is none, or it is damaged.
        """
        path = min(self.names(name), key=lambda path: (path.count("/"), path))
        try:
            return self._files[path]()
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ArchiveError(f"{path} in {self.path} is damaged ({error}): fetch the archive again") from error

    def table(
        self, name: str, columns: Sequence[str] = (), numbers: Sequence[str] = (), **options: Any
    ) -> pd.DataFrame:
        """Read a CSV file.

        Args:
          name: end of its path, as for `read`.
          columns: required columns.
          numbers: required columns with numbers.
          options: options of `pandas.read_csv`.

        Raises:
          ArchiveError: it is missing, is not a table, or lacks a column.
        """
        try:
            table = pd.read_csv(io.BytesIO(self.read(name)), **options)
        except (ValueError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{name} in {self.path} cannot be read as a table: {error}") from error
        if not len(table):
            raise ArchiveError(f"{name} in {self.path} has no rows")
        for column in (*columns, *numbers):
            if column not in table:
                there = ", ".join(map(str, table.columns[:12]))
                raise ArchiveError(f"{name} in {self.path} has no column {column!r}, it has {there}: it has changed")
        for column in numbers:
            if not pd.api.types.is_numeric_dtype(table[column]):
                wrong = table[column][pd.to_numeric(table[column], errors="coerce").isna()].iloc[0]
                raise ArchiveError(f"{name} in {self.path}: {column} holds {str(wrong)[:40]!r}, expected numbers")
        return table

    def json(self, name: str) -> Any:
        """Read a JSON file.

        Raises:
          ArchiveError: it is missing or is not JSON.
        """
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise ArchiveError(f"{name} in {self.path} is not JSON: {error}") from error

    def image(self, name: str, size: tuple[int, int] | None = None, mode: str = "RGB") -> np.ndarray:
        """Read an image, scaled to `size` (width, height): `[height, width, 3]` bytes, `[height, width]` in mode L.

        Raises:
          ArchiveError: it is missing or is not an image.
          TaskError: Pillow is not installed.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise TaskError(f"a task reads images through Pillow, which is not installed: {INSTALL}") from error
        try:
            with Image.open(io.BytesIO(self.read(name))) as image:
                if size:
                    image.draft(mode, size)  # Decodes a JPEG at the next larger eighth of its size: many times faster.
                image = image.convert(mode)
                return np.asarray(image if size is None else image.resize(size, Image.Resampling.BOX))
        except (OSError, Image.DecompressionBombError) as error:
            raise ArchiveError(f"{name} in {self.path} is no image: {error}") from error

    def images(self, names: Sequence[str], size: tuple[int, int], mode: str = "RGB") -> np.ndarray:
        """Read several images, all scaled to `size`, `[images, height, width(, 3)]` bytes (see `image`)."""
        shape = (len(names), size[1], size[0], *((3,) if mode == "RGB" else ()))
        stack = np.empty(shape, np.uint8)
        for place, name in enumerate(names):
            stack[place] = self.image(name, size, mode)
        return stack

    def _matching(self, pattern: str) -> list[str]:
        if pattern in self._files:
            return [pattern]
        parts = pattern.split("/")
        return sorted(
            name
            for name in self._files
            if len(tail := name.split("/")[-len(parts) :]) == len(parts) and all(map(fnmatch.fnmatchcase, tail, parts))
        )

    def _open_nested(self, pattern: str | None) -> None:
        """Open nested archives whose name is the first or last part of `pattern`, or all (None)."""
        wanted = None if pattern is None else {_stem(part) for part in pattern.split("/")}
        for name in [name for name in self._nested if wanted is None or _stem(PurePosixPath(name).name) in wanted]:
            path = self._temporary / f"{len(list(self._temporary.iterdir()))}{PurePosixPath(name).suffix}"
            self._nested.pop(name)(path)
            add = self._add_zip if path.suffix == ".zip" else self._add_7z
            add(path, PurePosixPath(name).parent)

    def _add_folder(self) -> None:
        for path in _files(self.path):
            name = path.relative_to(self.path).as_posix()
            self._add(name, path.read_bytes, lambda target, source=path: shutil.copyfile(source, target))

    def _add_zip(self, path: Path, parent: PurePosixPath) -> None:
        try:
            opened = self._held.enter_context(zipfile.ZipFile(path))
        except (OSError, zipfile.BadZipFile) as error:
            raise ArchiveError(f"{self.path} cannot be read ({error}): it was cut off, fetch it again") from error
        for member in opened.infolist():
            if not member.is_dir():

                def copy(target: Path, member: zipfile.ZipInfo = member) -> None:
                    with opened.open(member) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)

                self._add((parent / member.filename).as_posix(), lambda member=member: opened.read(member), copy)

    def _add_7z(self, path: Path, parent: PurePosixPath) -> None:
        try:
            import py7zr
            from py7zr.io import BytesIOFactory
        except ImportError as error:
            raise TaskError(f"a task reads a 7z archive through py7zr, which is not installed: {INSTALL}") from error
        try:
            with py7zr.SevenZipFile(path) as opened:
                members = [member.filename for member in opened.list() if not member.is_directory]
        except (OSError, py7zr.exceptions.ArchiveError) as error:
            raise ArchiveError(f"a 7z archive in {self.path} cannot be read ({error}): fetch it again") from error

        def read(member: str) -> bytes:
            factory = BytesIOFactory(_LARGEST)
            try:
                with py7zr.SevenZipFile(path) as opened:
                    opened.extract(targets=[member], factory=factory)
            except py7zr.exceptions.ArchiveError as error:
                raise OSError(str(error)) from error
            return factory.products[member].read()

        for member in members:
            self._add(
                (parent / member).as_posix(),
                lambda member=member: read(member),
                lambda target, member=member: target.write_bytes(read(member)),
            )

    def _add(self, name: str, read: Callable[[], bytes], copy: Callable[[Path], Any]) -> None:
        if name.startswith("__MACOSX/") or "/__MACOSX/" in name:
            return
        if name.endswith(_NESTED):
            self._nested[name] = copy
            return
        self._files.setdefault(name, read)
        if name.endswith(".gz"):
            self._files.setdefault(name.removesuffix(".gz"), lambda: gzip.decompress(read()))


def _stem(name: str) -> str:
    return name.partition(".")[0]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


@contextlib.contextmanager
def open_archive(raw: Path, file: str) -> Iterator[Archive]:
    """Open the archive `file` in the folder `raw`, or the files unpacked from it there.

    Raises:
      ArchiveError: both are missing, or cannot be read.
    """
    path = raw / file if (raw / file).is_file() else raw
    if path == raw and not _files(raw):
        raise ArchiveError(f"{raw / file} is not there")
    with Archive(path) as archive:
        yield archive
