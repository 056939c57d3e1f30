"""The strict reader of tables, for submissions and hidden answers: it checks each cell against its column's kind.

Nothing is guessed: `NA`, `001`, `1.10`, `True` and an empty cell are texts in a column of texts. A table is CSV in
UTF-8 with a header; empty lines are skipped. A submission is hostile: too large a one is refused before it is parsed,
and an error's text follows from the submission and the public format alone.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from environments.tasks.task import InvalidSubmissionError

LARGEST = 1e100
"""Largest magnitude of a number: sums of squares stay finite."""
NUMBER_BYTES = 100
TEXT_BYTES = 100_000
"""Maximum size of a text cell in bytes, below the limit of Python's csv reader."""


class TableError(ValueError):
    """The bytes are not a table, or a cell is not of its column's kind. The message quotes the cell."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Kind of a column."""

    what: str
    """The kind in an error: "... is 'x', not WHAT"."""
    pattern: re.Pattern[str]
    max_bytes: int
    low: float = -LARGEST
    high: float = LARGEST


_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
KINDS = {
    "number": Kind(f"a finite number up to {LARGEST:g}", _NUMBER, NUMBER_BYTES),
    "integer": Kind("an integer of at most 18 digits", re.compile(r"[+-]?[0-9]{1,18}(\.0*)?"), NUMBER_BYTES),
    "probability": Kind("a number from 0 to 1", _NUMBER, NUMBER_BYTES, 0.0, 1.0),
    "text": Kind(f"a text of at most {TEXT_BYTES} bytes", re.compile(r".*", re.DOTALL), TEXT_BYTES),
}
"""Kinds of columns, as task.yaml names them."""


def read_table(data: bytes) -> tuple[list[str], list[list[str]]]:
    """Parse a CSV file into header and rows, every row as long as the header.

    Raises:
      TableError: not UTF-8, not CSV, no header, a duplicate column name, a row of another length.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise TableError("the file is empty")
    header, *rows = rows
    if len(set(header)) < len(header):
        raise TableError("the header names a column twice")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise TableError(f"row {number} has {len(row)} cells, expected {len(header)}")
    return header, rows


def check_column(name: str, kind: str, cells: Iterable[str]) -> None:
    """Check that every cell of a column is of its kind.

    Raises:
      TableError: a cell is not; the message names its row.
    """
    expected = KINDS[kind]
    for number, cell in enumerate(cells, start=2):
        fits = len(cell) <= expected.max_bytes and expected.pattern.fullmatch(cell)
        if kind == "text":
            fits = fits and len(cell.encode()) <= expected.max_bytes
        elif fits:
            fits = expected.low <= float(cell) <= expected.high
        if not fits:
            raise TableError(f"row {number}: {name} is {cell[:20]!r}, not {expected.what}")


def values(kind: str, cells: Sequence[str]) -> np.ndarray:
    """Convert a checked column to floats or integers, or return its texts unchanged. `[rows]`"""
    if kind == "text":
        return np.array(cells, dtype=object)
    if kind == "integer":
        return np.array([int(cell.partition(".")[0]) for cell in cells], dtype=np.int64)
    return np.array(cells, dtype=float)


def frame(columns: Mapping[str, Sequence[str]], kinds: Mapping[str, str]) -> pd.DataFrame:
    """Return a data frame of checked columns; columns without a kind are texts."""
    return pd.DataFrame({name: values(kinds.get(name, "text"), cells) for name, cells in columns.items()})


def read_submission(
    data: bytes, id_column: str, kinds: Mapping[str, str], ids: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Parse a submission into cells by column, id column first, rows in the order of `ids`.

    Raises:
      InvalidSubmissionError: too large, not a table, another header, ids other than `ids` (in any order), or cells of
        another kind than their column's.
    """
    names = [id_column, *kinds]
    widths = [2 * max(len(name.encode()) for name in ids), *(2 * KINDS[kind].max_bytes for kind in kinds.values())]
    cap = len(",".join(names).encode()) + 8 + len(ids) * (sum(widths) + 3 * len(widths) + 2)
    if len(data) > cap:
        raise InvalidSubmissionError(f"the submission has {len(data)} bytes, at most {cap} are read")
    try:
        header, rows = read_table(data)
        if header != names:
            raise TableError(f"the first line must be {','.join(names)[:200]!r}")
        if len(rows) != len(ids):
            raise TableError(f"the submission has {len(rows)} rows, expected {len(ids)}")
        places = {name: place for place, name in enumerate(ids)}
        ordered: list[list[str] | None] = [None] * len(ids)
        for number, row in enumerate(rows, start=2):
            place = places.get(row[0])
            if place is None:
                raise TableError(f"row {number}: unknown id {row[0][:20]!r}")
            if ordered[place] is not None:
                raise TableError(f"row {number}: id {row[0][:20]!r} is there twice")
            ordered[place] = row
        for (name, kind), cells in zip(kinds.items(), list(zip(*rows, strict=True))[1:], strict=True):
            check_column(name, kind, cells)
    except TableError as error:
        raise InvalidSubmissionError(str(error)) from None
    return dict(zip(names, zip(*ordered, strict=True), strict=True))
