"""The strict reader of tables: submissions and hidden answers alike, cell by cell by the kind that a column declares.

Nothing is guessed: `NA`, `001`, `1.10`, `True` and an empty cell are texts where the column holds texts. A table is CSV
in UTF-8 with a header; empty lines are passed over. A submission is hostile: it is refused by its size before it is
parsed, and what a refusal says follows from the submission and the public format alone.
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
"""Largest magnitude of a number: sums of its squares stay finite."""
NUMBER_BYTES = 100
TEXT_BYTES = 100_000
"""Below the limit of Python's csv reader."""


class TableError(ValueError):
    """The bytes are not a table, or a cell is not of its column's kind. The message quotes the cell."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a column holds."""

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
    """Header and rows of a CSV file, every row as long as the header.

    Raises:
      TableError: not UTF-8, not CSV, no header, a column's name twice, a row of another length.
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
      TableError: one is not; the message names its row.
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
    """The values of a checked column: floats, integers, or the texts as they are. `[rows]`"""
    if kind == "text":
        return np.array(cells, dtype=object)
    if kind == "integer":
        return np.array([int(cell.partition(".")[0]) for cell in cells], dtype=np.int64)
    return np.array(cells, dtype=float)


def frame(columns: Mapping[str, Sequence[str]], kinds: Mapping[str, str]) -> pd.DataFrame:
    """A data frame of checked columns; those without a kind are texts."""
    return pd.DataFrame({name: values(kinds.get(name, "text"), cells) for name, cells in columns.items()})


def read_submission(
    data: bytes, id_column: str, kinds: Mapping[str, str], ids: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Cells of a submission by column, the id column first, its rows in the order of `ids`.

    Raises:
      InvalidSubmissionError: too large, not a table, another header, ids that are not exactly `ids` in any order, cells
        that are not of their column's kind.
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
