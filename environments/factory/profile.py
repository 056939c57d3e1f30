"""Profile of a table: the role of each column, its missing and distinct cells, and notes for a person.

    texts -> Column (role, missing, distinct, note) -> Profile

Cells are normalised on the way: numbers get a decimal point, dates become ISO 8601. Later readers need not guess.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

ROLES = ("number", "category", "text", "date", "id", "constant", "empty")
USED = ("number", "category", "text", "date")
"""Roles of columns that scripts see."""
_MOSTLY = 0.95
"""Minimum share of numbers (or dates) among the filled cells of a number (or date) column."""
_EMPTY = 0.98
_MANY = 0.8
"""Minimum share of distinct categories at which a column identifies rows."""
_WORDS = 4.0
"""Minimum mean number of words of a text."""
_ID_NAME = re.compile(r"(^|[^a-z])(id|ids|idx|index|key|uuid|guid|no|nr|row|rows|rownames|rownumber|unnamed)([^a-z]|$)|"
                      r"^(column 1|x\.?1|obs|case|seqn|sl\.? no)$|_id$", re.IGNORECASE)  # fmt: skip
_GROUP_NAME = re.compile(r"(patient|subject|user|customer|client|group|family|person|household|session|school|player|"
                         r"student|site|cluster|litter|hospital|store|firm|country|state|speaker|author|_id$|^id$)",
                         re.IGNORECASE)  # fmt: skip
_TIME_NAME = re.compile(
    r"(^|[^a-z])(date|time|year|month|day|week|quarter|timestamp|datetime)([^a-z]|$)", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_COMMA = re.compile(r"[+-]?\d{1,3}(\.\d{3})*,\d+|[+-]?\d+,\d+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_UNITS = re.compile(r"^[$\u20ac\u00a3]\s?|\s?[%\u20ac$\u00a3]$")
_DATES = (
    ("%Y-%m-%d", re.compile(r"\d{4}-\d{1,2}-\d{1,2}([ T]\d{1,2}:\d{2}.*)?")),
    ("%Y/%m/%d", re.compile(r"\d{4}/\d{1,2}/\d{1,2}")),
    ("%d.%m.%Y", re.compile(r"\d{1,2}\.\d{1,2}\.\d{4}")),
    ("%m/%d/%Y", re.compile(r"\d{1,2}/\d{1,2}/\d{4}")),
    ("%d/%m/%Y", re.compile(r"\d{1,2}/\d{1,2}/\d{4}")),
    ("%d %b %Y", re.compile(r"\d{1,2} [A-Za-z]{3} \d{4}")),
    ("%b %d, %Y", re.compile(r"[A-Za-z]{3} \d{1,2}, \d{4}")),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One column, its cells normalised to its role."""

    name: str
    role: str
    """One of `ROLES`."""
    cells: np.ndarray
    """Normalised texts, `[rows]` str; a missing cell is empty."""
    missing: int
    distinct: int
    note: str = ""
    """Change that was made to the column, or a remark about it."""

    @property
    def numbers(self) -> np.ndarray:  # [rows]
        """Cells of a number column as floats; missing cells are NaN."""
        return pd.to_numeric(pd.Series(self.cells, dtype=object), errors="coerce").to_numpy(float)


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """All columns of a table by name."""

    columns: Mapping[str, Column]
    rows: int
    duplicates: int
    """Number of rows that repeat an earlier one in all columns but ids."""

    def used(self) -> tuple[str, ...]:
        """Return the columns that scripts may see."""
        return tuple(name for name, column in self.columns.items() if column.role in USED)


def profile(cells: pd.DataFrame) -> Profile:
    """Profile a table of texts, `[rows, columns]`."""
    columns = {name: column(name, cells[name].to_numpy(object)) for name in cells}
    compared = [name for name, found in columns.items() if found.role in USED]
    repeated = cells[compared].duplicated().sum() if compared else 0
    return Profile(columns, len(cells), int(repeated))


def column(name: str, cells: np.ndarray) -> Column:
    """Profile one column of texts, `[rows]`."""
    filled = cells != ""
    present = cells[filled]
    missing, distinct = int((~filled).sum()), len(set(present.tolist()))
    if len(present) <= (1 - _EMPTY) * len(cells):
        return Column(name, "empty", cells, missing, distinct, "almost no cell is filled")
    if distinct == 1 and (missing == 0 or len(present) < 3):
        return Column(name, "constant", cells, missing, distinct, "every row holds the same")
    numbers, note = _as_numbers(cells, filled)
    if numbers is not None:
        values = numbers[numbers != ""].astype(float)
        if _is_row_number(name, values, len(cells)):
            return Column(name, "id", numbers, missing, distinct, "numbers the rows")
        if len(set(values.tolist())) == 1:
            return Column(name, "constant", numbers, missing, 1, "every row holds the same")
        return Column(name, "number", numbers, int((numbers == "").sum()), len(set(values.tolist())), note)
    dates = _as_dates(cells, filled)
    if dates is not None:
        return Column(
            name, "date", dates, missing, distinct, "" if (dates == cells).all() else "dates were made ISO 8601"
        )
    words = np.mean([cell.count(" ") + 1 for cell in present[:2000].tolist()])
    if words >= _WORDS and distinct > len(present) // 4:
        return Column(name, "text", cells, missing, distinct)
    if distinct > _MANY * len(present) and len(present) >= 10:
        return Column(name, "id", cells, missing, distinct, "nearly every row holds another value")
    share = _number_share(cells, filled)
    mixed = f"{share:.0%} of its cells are numbers" if 0.05 < share < _MOSTLY else ""
    return Column(name, "category", cells, missing, distinct, mixed)


def looks_like_group(name: str) -> bool:
    """Return whether a column's name suggests groups of rows, such as patients or countries."""
    return bool(_GROUP_NAME.search(name))


def looks_like_time(name: str) -> bool:
    """Return whether a column's name suggests a time."""
    return bool(_TIME_NAME.search(name.replace("_", " ")))


def _is_row_number(name: str, values: np.ndarray, rows: int) -> bool:
    """Return whether `values` are distinct whole numbers that count the rows or have the name of an id."""
    if len(values) < 3 or (values != np.rint(values)).any() or len(set(values.tolist())) < len(values):
        return False
    consecutive = values.max() - values.min() == len(values) - 1
    return len(values) == rows and ((consecutive and rows >= 10) or bool(_ID_NAME.search(name)))


def _number_share(cells: np.ndarray, filled: np.ndarray) -> float:
    return float(np.mean([bool(_NUMBER.fullmatch(cell)) for cell in cells[filled].tolist()]))


def _as_numbers(cells: np.ndarray, filled: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Return the cells as plain decimal numbers with a note; None instead of cells if too few are numbers."""
    plain = [_UNITS.sub("", cell) for cell in cells[filled].tolist()]
    is_plain = np.array([bool(_NUMBER.fullmatch(cell)) for cell in plain], bool)
    commas = np.array([bool(_COMMA.fullmatch(cell)) for cell in plain], bool)
    thousands = np.array([bool(_THOUSANDS.fullmatch(cell)) for cell in plain], bool)
    # `1,234` is ambiguous. It has a decimal comma only if another cell cannot be read in any other way.
    if (commas & ~thousands).any() and not (thousands & ~commas).any() and (is_plain | commas).mean() >= _MOSTLY:
        ok = is_plain | commas
        plain = [
            cell.replace(".", "").replace(",", ".") if comma else cell
            for cell, comma in zip(plain, commas, strict=True)
        ]
        note = "decimal commas"
    else:
        ok = is_plain | thousands
        plain = [cell.replace(",", "") if many else cell for cell, many in zip(plain, thousands, strict=True)]
        note = "commas between thousands" if thousands.any() else ""
    if ok.mean() < _MOSTLY or not all(np.isfinite(float(cell)) for cell, good in zip(plain, ok, strict=True) if good):
        return None, ""
    found = np.full(len(cells), "", dtype=object)
    found[filled] = [cell.lstrip("+") if good else "" for cell, good in zip(plain, ok, strict=True)]
    if not ok.all():
        note = "; ".join(filter(None, (note, f"{(~ok).sum()} cells are no numbers and count as missing")))
    return found, note


def _as_dates(cells: np.ndarray, filled: np.ndarray) -> np.ndarray | None:
    """Return the cells as ISO dates, or None if too few are dates."""
    present = cells[filled].tolist()
    for form, pattern in _DATES:
        if np.mean([bool(pattern.fullmatch(cell)) for cell in present[:1000]]) < _MOSTLY:
            continue
        spaced = form in ("%b %d, %Y", "%d %b %Y")
        heads = [cell if spaced else re.split(r"[ T]", cell, maxsplit=1)[0] for cell in present]
        days = pd.to_datetime(pd.Series(heads), format=form, errors="coerce")
        if days.notna().mean() >= _MOSTLY:
            found = np.full(len(cells), "", dtype=object)
            times = [cell[len(head) :] if form == "%Y-%m-%d" else "" for cell, head in zip(present, heads, strict=True)]
            times = [re.sub(r"^([ T])(\d:)", r"\g<1>0\2", time) for time in times]  # Texts are sorted later.
            printed = ["" if pd.isna(day) else f"{day:%Y-%m-%d}{time}" for day, time in zip(days, times, strict=True)]
            found[filled] = printed
            return found
    return None
