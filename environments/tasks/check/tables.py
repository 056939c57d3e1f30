"""Tables that a script could read from public files, in any dialect, encoding and packing.

    file -> unpacked (gzip, bzip2, xz, zip, tar) -> text, JSON, NumPy, SQLite or Parquet -> Table

A file may have several readings; each gives a table. Formats that need `pickle` are skipped: reading them would execute
them.
"""

from __future__ import annotations

import bz2
import collections
import dataclasses
import functools
import gzip
import io
import json
import lzma
import re
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LARGEST = 32 << 20
"""Maximum size in bytes of an unpacked file; of a longer one only the head is read."""
_CELLS = 2_000_000
"""Maximum number of cells of a table; later rows are skipped."""
_COLUMNS = 240
"""Maximum number of columns of a table: of a wider one a third from each end, and a third spread between them."""
_MEMBERS = 2000
"""Maximum number of files read from an archive."""
_DELIMITERS = (",", ";", "\t", "|", r"\s+")
_LINE_END = re.compile(r"\r\n|\r|\n")
_HEAD = 1 << 20
_SNIFFED = 200
"""Number of lines from which the number of columns is detected."""
_DEPTH = 4
"""Maximum nesting of archives, and of lists in JSON."""
_BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """Cells of one column, top to bottom, including the header's."""

    name: str
    cells: np.ndarray
    """Cells, `[rows]` str, stripped."""

    @functools.cached_property
    def numbers(self) -> np.ndarray:  # [rows]
        """Cells as numbers; NaN for other cells."""
        return numbers(self.cells)

    @functools.cached_property
    def decimals(self) -> np.ndarray:  # [rows]
        """Digits after the decimal point of each printed cell."""
        return decimals(self.cells)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """One reading of a file."""

    path: str
    """Path in the sandbox, for example `data/train.csv`."""
    columns: tuple[Column, ...]
    rows: np.ndarray
    """Number of each row in the file, from 1, `[rows]`."""

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


def numbers(cells: np.ndarray) -> np.ndarray:  # [rows] float
    """Parse `cells` as numbers, decimal commas included; NaN for other cells and infinities."""
    found = pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce").to_numpy(float)
    for place in np.flatnonzero(np.isnan(found)):
        if re.fullmatch(r"[+-]?\d+,\d+", cells[place]):
            found[place] = float(cells[place].replace(",", "."))
    return np.where(np.isfinite(found), found, np.nan)


def decimals(cells: np.ndarray) -> np.ndarray:  # [rows] int
    """Return the digits after the decimal point of printed numbers; an exponent moves the point."""
    return np.array([_decimals(cell) for cell in cells.tolist()], dtype=int)


def _decimals(cell: str) -> int:
    if cell.isdigit():
        return 0
    mantissa, _, exponent = cell.lower().replace(",", ".").partition("e")
    shift = int(exponent) if re.fullmatch(r"[+-]?\d{1,3}", exponent) else 0
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - shift)


def read_tables(root: Path, shown: str) -> Iterator[Table]:
    """Yield every table in the files under `root`, which scripts see as the folder `shown` (empty: the workspace)."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(root).as_posix()
            with path.open("rb") as file:
                yield from read_bytes(f"{shown}/{name}" if shown else name, file.read(LARGEST))


def folder_table(root: Path, shown: str) -> Table:
    """Return the information of `ls -l` on the files under `root`: names without extension, sizes, order of times."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    status = [path.stat() for path in files]
    times = np.array([one.st_mtime_ns for one in status])
    table = {
        "name": [path.stem for path in files],
        "size": [one.st_size for one in status],
        "order of times": np.argsort(np.argsort(times, kind="stable"), kind="stable"),
    }
    return _table(f"the list of files in {shown}", pd.DataFrame(table).astype(str), header=False)


def read_bytes(path: str, data: bytes, depth: int = 0) -> Iterator[Table]:
    """Yield every table in one file, if any."""
    try:
        if depth < _DEPTH and (unpacked := _unpack(data)) is not None:
            for name, member in unpacked:
                yield from read_bytes(f"{path}, {name}" if name else path, member, depth + 1)
        elif data.startswith(b"\x93NUMPY"):
            yield from _read_array(path, np.load(io.BytesIO(data), allow_pickle=False))
        elif data.startswith(b"SQLite format 3\0"):
            yield from _read_sqlite(path, data)
        elif data.startswith(b"PAR1"):
            yield _table(path, pd.read_parquet(io.BytesIO(data)).astype(str), header=False)
        elif (text := decode(data)) is not None:
            yield from _read_text(path, text)
    except (*_BROKEN, ImportError, sqlite3.Error, pd.errors.ParserError):
        return


def _unpack(data: bytes) -> Iterator[tuple[str, bytes]] | None:
    """Return members of packed `data` by name, or None if it is not packed."""
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    for magic, opener in openers.items():
        if data.startswith(magic):
            with opener(io.BytesIO(data)) as file:
                return iter([("", file.read(LARGEST))])
    if data.startswith(b"PK\x03\x04"):
        return _zip(data)
    return _tar(data) if data[257:262] == b"ustar" else None


def _zip(data: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist()[:_MEMBERS]:
            with archive.open(member) as file:
                yield member.filename, file.read(LARGEST)


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers()[:_MEMBERS]:
            if (file := archive.extractfile(member)) is not None:
                yield member.name, file.read(LARGEST)


def decode(data: bytes) -> str | None:
    """Decode `data`: by its byte-order mark, else UTF-16 if every second byte is 0, else UTF-8, else Latin-1; None if
    binary."""
    marks = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    for mark, encoding in marks.items():
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    head = data[:4096]
    if head.count(0) > len(head) // 4:
        half = head[1::2].count(0) > head[::2].count(0)
        return data.decode("utf-16-le" if half else "utf-16-be", errors="replace") if len(data) % 2 == 0 else None
    if 0 in head:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        odd = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
        return data.decode("latin-1") if odd <= len(head) // 100 else None


def _read_text(path: str, text: str) -> Iterator[Table]:
    if text.lstrip()[:1] in ("{", "["):
        yield from _read_json(path, text)
    lines = [line for line in _LINE_END.split(text) if line.strip()]
    plain = [line for line in _LINE_END.split(re.sub(r'"[^"]*"', "", text[:_HEAD])) if line.strip()][:_SNIFFED]
    found = False
    for delimiter in _DELIMITERS:
        count = (lambda line: len(line.split())) if delimiter == r"\s+" else (lambda line: line.count(delimiter) + 1)  # noqa: B023
        widths = collections.Counter(map(count, plain))
        width, often = max(widths.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
        if width > 1 and often >= 2 and 2 * often >= len(plain):
            found = True
            yield _read_delimited(path, text, delimiter, width)
    if not found and lines:
        yield _table(path, pd.DataFrame({0: lines}), header=True)


def _read_delimited(path: str, text: str, delimiter: str, width: int) -> Table:
    """Parse rows of `width` cells; titles above, notes below and blank lines are skipped."""
    frame = pd.read_csv(
        io.StringIO(text),
        sep=delimiter,
        header=None,
        names=range(width),
        nrows=_CELLS // width,
        index_col=False,
        dtype=str,
        keep_default_na=False,
        na_values=[],
        skip_blank_lines=False,
        on_bad_lines="skip",
        skipinitialspace=True,
    )
    filled = frame.fillna("").ne("")
    some, whole = filled.any(axis=1), filled.iloc[:, 1:].any(axis=1)
    return _table(path, frame.fillna("")[some & (whole.cumsum() > 0)], header=True)


def _read_json(path: str, text: str) -> Iterator[Table]:
    try:
        values = json.loads(text)
    except ValueError:
        try:
            values = [json.loads(line) for line in text.split("\n") if line.strip()]
        except ValueError:
            return
    yield from _tables_of(path, values, 0)


def _tables_of(path: str, value: Any, depth: int) -> Iterator[Table]:
    """Yield tables from a JSON value: lists of numbers, texts, records or lists, and mappings from names to such."""
    if depth > _DEPTH or not isinstance(value, dict | list) or not value:
        return
    items = list(value.values()) if isinstance(value, dict) else value
    if not any(isinstance(item, dict | list) for item in items):
        columns = {"key": list(value), "value": items} if isinstance(value, dict) else {"value": items}
        yield _table(path, pd.DataFrame(columns).astype(str), header=False)
    elif isinstance(value, list) and all(isinstance(item, dict) for item in items):
        yield _table(path, pd.DataFrame(items).astype(str), header=False)
    elif all(isinstance(item, list) for item in items) and len(set(map(len, items))) == 1:
        rows = pd.DataFrame(items)
        named = rows.T.set_axis(list(value), axis=1) if isinstance(value, dict) else rows
        yield _table(path, named.astype(str), header=False)
    else:
        for name, item in value.items() if isinstance(value, dict) else enumerate(items):
            yield from _tables_of(f"{path}, {name}", item, depth + 1)


def _read_array(path: str, array: np.ndarray) -> Iterator[Table]:
    if array.dtype.kind in "biufUS" and array.ndim >= 1 and array.size <= _CELLS:
        flat = array.reshape(len(array), -1)
        yield _table(path, pd.DataFrame(flat.astype(str)), header=False)


def _read_sqlite(path: str, data: bytes) -> Iterator[Table]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(data)
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            frame = pd.read_sql_query(f'SELECT * FROM "{name}"', connection)  # noqa: S608 - of a table in memory
            yield _table(f"{path}, {name}", frame.astype(str), header=False)
    finally:
        connection.close()


def _table(path: str, frame: pd.DataFrame, header: bool) -> Table:
    """Convert a `frame` of texts to a table. With `header` the names become its first row, if they are texts."""
    names = [str(name) for name in frame.columns]
    if header:
        first = [str(cell).strip() for cell in frame.iloc[0]] if len(frame) else []
        texts = bool(first) and np.isnan(numbers(np.array(first, dtype=object))).all()
        names = first if texts else [f"column {place}" for place in range(1, frame.shape[1] + 1)]
    places = range(len(names))
    if len(names) > _COLUMNS:
        end = _COLUMNS // 3
        inner = np.linspace(end, len(names) - end - 1, end).astype(int).tolist()
        places = [*places[:end], *inner, *places[-end:]]
    columns = tuple(Column(names[place][:80], frame.iloc[:, place].str.strip().to_numpy(object)) for place in places)
    return Table(path, columns, frame.index.to_numpy() + 1)
