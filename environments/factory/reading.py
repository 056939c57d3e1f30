"""Reading of a table from a file or folder of any dialect into texts; a missing cell becomes an empty text.

    FILE.csv, .tsv, .txt (also .gz, .bz2, .xz)   delimiter, encoding and byte-order mark are detected
    FILE.parquet, FILE.xlsx, FILE.xls            with the library that reads it; the error names it
    folder of images with a label file           columns of grey pixels

Sizes are checked before anything is parsed. No content of a file is executed.
"""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import importlib
import io
import lzma
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from environments.tasks.check.tables import decode
from environments.tasks.task import TaskError

LARGEST = 256 << 20
"""Maximum size of an unpacked file in bytes."""
MOST_CELLS = 20_000_000
MOST_COLUMNS = 2000
NAME_LENGTH = 60
"""Maximum length of a column's name; longer ones are cut."""
SIDE = 12
"""Side of an image in pixels, after shrinking."""
_PACKED: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_LIBRARIES = {
    ".parquet": ("pyarrow", "read_parquet"),
    ".xlsx": ("openpyxl", "read_excel"),
    ".xls": ("xlrd", "read_excel"),
}
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
_DELIMITERS = ",;\t|"
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?", "#n/a", "nat", "<na>", "missing"})
_SAFE = frozenset("_ .,:/()%+#&-")
"""Characters of a column's name beside letters and digits."""


class RefusalError(TaskError):
    """The data cannot become a task. The message names the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class RawTable:
    """Cells of a table as texts, with notes from reading it."""

    cells: pd.DataFrame
    """Texts, `[rows, columns]`; a missing cell is an empty text."""
    notes: tuple[str, ...] = ()
    kind: str = "tabular"
    """`image` if the columns are the pixels of images."""
    license: str = ""
    """License that came with the table, used if the list of its source has none."""


def read(path: Path, target: str = "") -> RawTable:
    """Read the table in `path`.

    Args:
      path: File, or folder of images.
      target: Target column in the label file of a folder of images; unused for a file.

    Raises:
      RefusalError: The file is missing, too large or not a table, or a library is missing.
    """
    if path.is_dir():
        return _read_images(path, target)
    if not path.is_file():
        raise RefusalError(f"{path} is not a file or folder")
    if path.stat().st_size > LARGEST:
        raise RefusalError(
            f"{path} has {path.stat().st_size >> 20} MB; at most {LARGEST >> 20} are read: take a sample"
        )
    suffix = path.suffix.lower()
    if suffix in _LIBRARIES:
        return _read_with_library(path, *_LIBRARIES[suffix])
    opener = _PACKED.get(suffix, open)
    try:
        with opener(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise RefusalError(f"{path} cannot be unpacked: {error}") from error
    if len(data) > LARGEST:
        raise RefusalError(f"{path} unpacks to more than {LARGEST >> 20} MB: take a sample")
    return read_delimited(data, str(path))


def read_delimited(data: bytes, name: str) -> RawTable:
    """Read a delimited text with a header.

    Raises:
      RefusalError: The text is binary, has no rows below its header, or has fewer than two columns.
    """
    text = decode(data)
    if text is None:
        raise RefusalError(f"{name} is not a text file: CSV, TSV, Parquet and Excel files are read")
    notes = ["a byte-order mark was removed"] if data[:3] == b"\xef\xbb\xbf" else []
    text = text.removeprefix("\ufeff")
    delimiter = _delimiter(text)
    if delimiter != ",":
        notes.append(f"cells are separated by {delimiter!r}")
    csv.field_size_limit(1 << 20)
    rows, cells = [], 0
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if any(map(str.strip, row)):
                rows.append(row)
                cells += len(row)
            if cells > MOST_CELLS + MOST_COLUMNS:
                raise RefusalError(f"{name} has more than {MOST_CELLS} cells: take a sample")
    except csv.Error as error:
        raise RefusalError(f"{name} is not a table: {error}") from error
    if len(rows) < 2:
        raise RefusalError(f"{name} has no rows below its header")
    width = Counter(map(len, rows)).most_common(1)[0][0]
    header = (
        rows[0] if len(rows[0]) == width else [*rows[0], *(f"column {n}" for n in range(len(rows[0]), width))][:width]
    )
    kept = [row for row in rows[1:] if len(row) == width]
    if len(kept) < len(rows) - 1:
        notes.append(f"{len(rows) - 1 - len(kept)} rows with another number of cells than {width} were left out")
    return table_of(pd.DataFrame(kept, columns=range(width), dtype=object), header, notes)


def _delimiter(text: str) -> str:
    """Return the delimiter with which most lines have the same number of cells; in a tie, the larger number wins."""
    lines = [line for line in text[: 1 << 18].splitlines() if line.strip()][:100]
    lines = [re.sub(r'"[^"]*"', '""', line) for line in lines]
    best = (0, 0)
    found = ","
    for delimiter in _DELIMITERS:
        width, often = Counter(line.count(delimiter) for line in lines).most_common(1)[0] if lines else (0, 0)
        if width and (often * 2 >= len(lines)) and (often, width) > best:
            best, found = (often, width), delimiter
    return found


def table_of(frame: pd.DataFrame, header: list[Any], notes: list[str]) -> RawTable:
    """Return a table with clean, unique column names and stripped cells.

    Raises:
      RefusalError: The table has too many columns or cells, or fewer than two columns.
    """
    if frame.shape[1] > MOST_COLUMNS or frame.size > MOST_CELLS:
        raise RefusalError(
            f"the table has {frame.shape[0]} rows and {frame.shape[1]} columns: at most {MOST_COLUMNS} "
            f"columns and {MOST_CELLS} cells are read"
        )
    if frame.shape[1] < 2:
        raise RefusalError("the table has one column: a target needs others to be predicted from")
    names: list[str] = []
    for place, name in enumerate(header, start=1):
        clean = clean_name(name) or f"column {place}"
        while clean in names:
            clean = f"{clean[: NAME_LENGTH - 8]} ({place})"
        names.append(clean)
    changed = sum(clean != str(name) for clean, name in zip(names, header, strict=True))
    if changed:
        notes.append(f"{changed} names of columns were cleaned or made unique")
    frame = frame.set_axis(names, axis=1).map(_cell)
    return RawTable(frame, tuple(notes))


def clean_name(name: Any) -> str:
    """Return the name on one line, with letters, digits and `_SAFE` only, at most `NAME_LENGTH` of them."""
    plain = unicodedata.normalize("NFKC", str(name)[: 100 * NAME_LENGTH])
    kept = "".join(letter if letter.isalnum() or letter in _SAFE else " " for letter in plain)
    return " ".join(kept.split())[:NAME_LENGTH].strip()


def find_column(table: RawTable, name: str) -> str:
    """Return the column that the file calls `name`; the name itself if there is none."""
    return name if name in table.cells or clean_name(name) not in table.cells else clean_name(name)


def _cell(value: Any) -> str:
    text = " ".join(str(value).replace("\0", " ").split())
    return "" if text.lower() in _MISSING else text[:20_000]


def _read_with_library(path: Path, library: str, function: str) -> RawTable:
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise RefusalError(f"{path}: reading {path.suffix} files needs {library}: `pip install {library}`") from error
    try:
        _check_size(path)
        frame = getattr(pd, function)(path)
    except RefusalError:
        raise
    except Exception as error:  # Each library has its own errors.
        raise RefusalError(f"{path} cannot be read: {str(error)[:200]}") from error
    return from_frame(frame)


def _check_size(path: Path) -> None:
    """Refuse a packed file that holds much more than its size tells, before it is parsed."""
    if path.suffix.lower() == ".parquet":
        held = importlib.import_module("pyarrow.parquet").ParquetFile(path).metadata
        if held.num_columns > MOST_COLUMNS or held.num_rows * held.num_columns > MOST_CELLS:
            raise RefusalError(f"{path} has {held.num_rows} rows and {held.num_columns} columns, which is too large")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(one.file_size for one in archive.infolist()) > LARGEST:
                raise RefusalError(f"{path} unpacks to more than {LARGEST >> 20} MB: take a sample")


def from_frame(frame: pd.DataFrame) -> RawTable:
    """Convert a data frame to texts; whole floats lose their `.0`, times become ISO dates.

    Raises:
      RefusalError: The table has too many columns or cells, or fewer than two columns.
    """
    if frame.shape[1] > MOST_COLUMNS or frame.size > MOST_CELLS:
        raise RefusalError(f"the table has {frame.shape[0]} rows and {frame.shape[1]} columns, which is too large")
    columns = {}
    for place in range(frame.shape[1]):
        column = frame.iloc[:, place]
        missing = column.isna().to_numpy()
        if pd.api.types.is_float_dtype(column):
            cells = [f"{value:.10g}" for value in column.to_numpy(float)]
        elif pd.api.types.is_datetime64_any_dtype(column):
            cells = [str(value)[:19] for value in column]
        else:
            cells = [str(value) for value in column]
        columns[place] = np.where(missing, "", np.array(cells, dtype=object))
    return table_of(pd.DataFrame(columns, dtype=object), [str(name) for name in frame.columns], [])


def join(train: RawTable, test: RawTable, target: str) -> tuple[RawTable, str]:
    """Join the labelled rows of a competition's train and test files.

    The test file is used only if it has the target. Otherwise its labels are unknown, and hidden rows are taken from
    the train file.

    Returns:
      The joined table, and a note about the test file.
    """
    if target in test.cells and (test.cells[target] != "").any():
        columns = [name for name in train.cells if name in test.cells]
        joined = pd.concat([train.cells[columns], test.cells[columns]], ignore_index=True)
        note = f"the test file has the target: its {len(test.cells)} rows were added to the others"
        return RawTable(joined, train.notes, train.kind), note
    extra = [name for name in train.cells if name not in test.cells and name != target]
    table = dataclasses.replace(train, cells=train.cells.drop(columns=extra))
    note = f"the test file has no {target}: hidden rows come from the train file"
    return table, note + (f"; columns that it lacks were left out: {', '.join(extra[:5])}" if extra else "")


class _Images:
    """Images in a folder, by the names that a label file may have for them, with or without the suffix."""

    def __init__(self, folder: Path) -> None:
        self._whole: dict[str, set[Path]] = {}
        """Images by their path in the folder."""
        self._ends: dict[str, set[Path]] = {}
        """Images by the end of that path."""
        for path in folder.rglob("*"):
            if path.suffix.lower() not in _IMAGES or not path.is_file():
                continue
            for parts in (path.relative_to(folder).parts, path.relative_to(folder).with_suffix("").parts):
                self._whole.setdefault("/".join(parts), set()).add(path)
                for start in range(len(parts)):
                    self._ends.setdefault("/".join(parts[start:]), set()).add(path)

    def named(self, name: str) -> set[Path]:
        """Return the images that `name` may be: the path of one is the end of the other's."""
        name = name.replace("\\", "/").removeprefix("./")
        if found := self._whole.get(name) or self._ends.get(name):
            return found
        parts = name.split("/")
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return next((self._whole[end] for end in ends if end in self._whole), set())


def _read_images(folder: Path, target: str) -> RawTable:
    """Read the images that the folder's label file names, as grey squares of `SIDE` by `SIDE` pixels."""
    labels = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tsv", ".txt"))
    if len(labels) != 1:
        raise RefusalError(
            f"{folder} must hold one label file (CSV: file name, label) beside its images, not {len(labels)}"
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise RefusalError(f"{folder}: reading images needs Pillow: `pip install pillow`") from error
    raw = read(labels[0])
    table, target = raw.cells, find_column(raw, target)
    files = _Images(folder)
    by_column = {name: sum(bool(files.named(cell)) for cell in table[name]) for name in table}
    named = max(by_column, key=lambda name: by_column[name])
    if not by_column[named]:
        raise RefusalError(f"{labels[0]}: no column holds the names of the images in {folder}")
    if target not in table:
        raise RefusalError(f"{labels[0]} has no column {target!r}; it has {', '.join(table)}")
    pixels, kept, broken = [], [], 0
    Image.MAX_IMAGE_PIXELS = 50_000_000
    for name, label in zip(table[named], table[target], strict=True):
        paths = sorted(files.named(name))
        if len(paths) > 1:
            raise RefusalError(f"{labels[0]}: {name!r} may be {' or '.join(map(str, paths[:2]))}: write the folder too")
        try:
            with Image.open(paths[0]) as image:
                grey = image.convert("L").resize((SIDE, SIDE))
        except (OSError, ValueError, IndexError, Image.DecompressionBombError):
            broken += 1
            continue
        pixels.append(np.asarray(grey, dtype=int).ravel())
        kept.append(label)
    if not kept:
        raise RefusalError(f"{folder}: none of its images can be read")
    frame = pd.DataFrame(np.array(pixels)).astype(str).astype(object)
    frame.columns = [f"p{place}" for place in range(SIDE * SIDE)]
    notes = [f"{len(kept)} images, grey, {SIDE} by {SIDE} pixels"] + (
        [f"{broken} images could not be read"] if broken else []
    )
    frame = pd.concat([frame, pd.DataFrame({target: kept}, dtype=object)], axis=1)
    return RawTable(frame, tuple(notes), "image")
