"""Search for hidden labels in tables that scripts can read, as a cheat would search.

A column reveals the labels if its cells agree with them far beyond chance in one of these orders:

    the hidden rows' own, also shifted by some rows, also from the bottom up
    the order of the hidden rows' ids in another column

or if it contains the hidden values in any order. Cells are compared at their printed precision, so rounded labels
count. Empty cells are ignored, so labels of some of the rows count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from environments.tasks.check.tables import Column, Table, decimals, numbers

_AGREEMENT = 0.9
"""Minimum agreement above chance at which any column counts as the labels, as a share."""
_RARE_AGREEMENT = 0.2
"""The same for labels of rare values, which hardly agree by chance."""
_EXCESS = 0.1
"""Minimum share of the hidden values found in a file above chance, in any order."""
_UNLIKELY = 1e-9
"""Maximum probability of such agreement by chance."""
_UNLIKELY_WHOLE = 1e-5
"""The same if every cell beside a hidden row or its id agrees."""
_SIX = 5e-6
"""Relative error of six digits, to which graders print labels."""
_RECODED = 0.99
_CODES = 50
"""Maximum number of values of a column that may encode classes."""
_SHIFTS = range(-3, 4)
_SAMPLE = 20_000
"""Maximum number of rows compared."""
_TIES = 20
"""Maximum number of equal cells that vote for a shift."""
_LOOKED = 1000
"""Number of cells that are sampled to see whether a column has ids at all."""
_DRAWS = 20
_SEED = 0x1EA4


@dataclasses.dataclass(frozen=True)
class Labels:
    """One hidden column."""

    name: str
    ids: np.ndarray
    """Ids, `[rows]` str."""
    cells: np.ndarray
    """Labels, `[rows]` str."""
    public: np.ndarray
    """The same column of the public rows, `[public rows]` str; empty if unknown."""

    def __post_init__(self) -> None:
        cells, values = self.cells, numbers(self.cells)
        distinct = len(set(cells.tolist()))
        object.__setattr__(self, "distinct", distinct)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "decimals", decimals(cells))
        object.__setattr__(self, "numeric", bool(len(cells)) and not np.isnan(values).any())
        # A match of rare values is no coincidence: most of them differ, and not because they count from 0.
        object.__setattr__(self, "rare", distinct > max(20, len(cells) // 2))

    def agree(self, rows: np.ndarray, column: Column, places: np.ndarray) -> np.ndarray:  # [rows] bool
        """Check whether the labels of `rows` equal the column's cells at `places`, at the coarser precision."""
        if not self.numeric:
            return self.cells[rows] == column.cells[places]
        mine, theirs, values = self.decimals[rows], column.decimals[places], self.values[rows]
        # A whole number is not a rounded fraction: finer cells must have exactly its value.
        digits = np.where((mine == 0) & (theirs > 0), 9, np.minimum(mine, theirs))
        with np.errstate(invalid="ignore"):
            return np.abs(values - column.numbers[places]) <= np.maximum(0.501 * 10.0**-digits, _SIX * np.abs(values))


@dataclasses.dataclass(frozen=True)
class Leak:
    """Location of labels in a public file."""

    file: str
    column: str
    row: int
    """Number of the first row of the file that reveals a label."""
    what: str

    def __str__(self) -> str:
        return f"{self.file}: column {self.column[:40]!r}, row {self.row}: {self.what}"


def hidden_labels(labels: Mapping[str, list[str]], public: Mapping[str, np.ndarray]) -> list[Labels]:
    """Return the columns of a grader's `labels` with more than one value."""
    ids = np.array([name.strip() for name in labels["id"]], dtype=object)
    unknown = np.array([], dtype=object)
    return [
        Labels(name, ids, np.array([cell.strip() for cell in cells], dtype=object), public.get(name, unknown))
        for name, cells in labels.items()
        if name != "id" and len(set(cells)) > 1
    ]


def find(tables: Iterable[Table], hidden: Iterable[Labels]) -> Iterator[Leak]:
    """Yield the leaks of every hidden column in every table, at most one for each pair."""
    hidden = list(hidden)
    for table in tables:
        for labels in hidden:
            leak = next(_in_table(table, labels), None)
            if leak is not None:
                yield leak


def _in_table(table: Table, labels: Labels) -> Iterator[Leak]:
    orders = list(_by_id(table, labels))
    for column in table.columns:
        for how, rows, places in (*orders, *_by_place(column, labels)):
            if column.name != how and (leak := _judge(table, column, labels, how, rows, places)) is not None:
                yield leak
    if labels.rare:
        yield from _anywhere(table, labels)


def _by_id(table: Table, labels: Labels) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield, for every column that has ids: its name, hidden rows, and the table's rows of the same ids."""
    place_of = {_key(name): row for row, name in enumerate(labels.ids.tolist())}
    rng = np.random.default_rng(_SEED)
    for column in table.columns:
        looked = rng.choice(column.cells, min(len(table), _LOOKED), replace=False)
        if not any(_key(cell) in place_of for cell in looked):
            continue
        rows = np.array([place_of.get(_key(cell), -1) for cell in column.cells.tolist()])
        places = np.flatnonzero(rows >= 0)
        enough = max(5, min(len(labels.ids) // 50, len(table) // 2))
        if len(set(rows[places].tolist())) == len(places) >= enough:
            yield column.name, rows[places], places


def _key(cell: str) -> str:
    """Normalise an id for comparison: `7` and `7.0` are equal."""
    return cell.removesuffix(".0")


def _by_place(column: Column, labels: Labels) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield hidden rows and the cells beside them, from top and bottom, shifted by a few rows or by the best fit."""
    length, rows = len(column.cells), np.arange(len(labels.cells))
    offsets = {first + shift for first in (0, length - len(rows)) for shift in _SHIFTS}
    offsets |= set(_voted(column, labels))
    for offset in sorted(offsets, key=abs):
        inside = (rows + offset >= 0) & (rows + offset < length)
        if inside.sum() >= min(8, len(rows)):
            yield f"shift {offset}", rows[inside], rows[inside] + offset
    if len(rows) <= length <= len(rows) + 1:
        yield "upwards", rows, length - 1 - rows


def _voted(column: Column, labels: Labels) -> Iterator[int]:
    """Yield the shift at which most rare values match."""
    if not (labels.rare and labels.numeric):
        return
    values, places = column.numbers, np.flatnonzero(~np.isnan(column.numbers))
    votes = []
    for digits in np.unique(column.decimals[places]):
        chosen = places[column.decimals[places] == digits]
        keys = np.rint(values[chosen] * 10.0**digits)
        order = np.argsort(keys, kind="stable")
        wanted = np.rint(labels.values * 10.0**digits)
        left, right = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
        for further in range(_TIES):
            rows = np.flatnonzero((left + further < right) & (right - left <= _TIES))
            votes.append(chosen[order[left[rows] + further]] - rows)
    shifts, often = np.unique(np.concatenate([*votes, np.array([], int)]), return_counts=True)
    if len(shifts):
        yield int(shifts[often.argmax()])


def _judge(table: Table, column: Column, labels: Labels, how: str, rows: np.ndarray, places: np.ndarray) -> Leak | None:
    """Return a leak if the column's cells at `places` agree with the labels of `rows` beyond chance."""
    filled = column.cells[places] != ""
    rows, places = rows[filled][:_SAMPLE], places[filled][:_SAMPLE]
    if len(rows) < 8:
        return None
    agree = labels.agree(rows, column, places)
    share = agree.mean()
    if share >= _RARE_AGREEMENT:
        rng = np.random.default_rng(_SEED)
        chance = np.mean([labels.agree(rng.permutation(rows), column, places).mean() for _ in range(_DRAWS)])
        least = _RARE_AGREEMENT if labels.rare else _AGREEMENT
        limit = _UNLIKELY_WHOLE if agree.all() and _in_place(how, rows, places) else _UNLIKELY
        if share - chance >= least * (1 - chance) and _unlikely(share, chance, len(rows), limit):
            first = places[agree][0]
            by = "" if how.startswith(("shift", "upwards")) else f", by the ids in {how[:40]!r}"
            row = rows[agree][0]
            text = f"is {labels.name} of hidden row {row + 1}{by} ({agree.sum()} of {len(rows)}; chance {chance:.0%})"
            return Leak(table.path, column.name, int(table.rows[first]), text)
    return _recoded(table, column, labels, rows, places) if _in_place(how, rows, places) else None


def _in_place(how: str, rows: np.ndarray, places: np.ndarray) -> bool:
    """Check whether cells are beside the hidden rows or their ids, not shifted."""
    return not how.startswith("shift") or places[0] - rows[0] in (0, 1)


def _recoded(table: Table, column: Column, labels: Labels, rows: np.ndarray, places: np.ndarray) -> Leak | None:
    """Return a leak if the column is a code of the labels: every value of one stands for a value of the other."""
    cells, truth = column.cells[places], labels.cells[rows]
    if not (labels.distinct <= _CODES and 2 <= len(set(cells[:500].tolist())) <= _CODES and len(set(truth)) > 1):
        return None
    (codes, code), (classes, label) = (np.unique(part.astype(str), return_inverse=True) for part in (cells, truth))
    if len(rows) < 10 * len(codes):
        return None
    counts = np.zeros((len(codes), len(classes)))
    np.add.at(counts, (code, label), 1)
    chance = counts.sum(axis=0).max() / len(rows)
    share = counts.max(axis=1).sum() / len(rows)
    if share - chance < _RECODED * (1 - chance) or not _unlikely(share, chance, len(rows)):
        return None
    text = f"is a code of {labels.name} ({share:.0%} of {len(rows)} rows; the commonest value is {chance:.0%})"
    return Leak(table.path, column.name, int(table.rows[places[0]]), text)


def _anywhere(table: Table, labels: Labels) -> Iterator[Leak]:
    """Yield a leak if the table contains rare values in any order, far more than made-up and public values."""
    hits = np.zeros(len(labels.cells), bool)
    made_up = _made_up(labels)
    by_chance = np.zeros(len(made_up), bool)
    others = np.zeros(len(labels.public), bool)
    where: list[tuple[int, Column, np.ndarray]] = []
    for column in table.columns:
        found = _contained(column, labels.cells, 1)
        hits |= found
        by_chance |= _contained(column, made_up, 1)
        own = 2 if labels.public.size and _contained(column, labels.public, 1).mean() > 0.9 else 1
        others |= _contained(column, labels.public, own)
        where.append((int(found.sum()), column, found))
    share = hits.mean()
    chance = max((part.mean() for part in (by_chance, others) if part.size), default=0.0)
    if share - chance >= _EXCESS * (1 - chance) and _unlikely(share, chance, len(hits)):
        count, column, found = max(where, key=lambda item: item[0])
        row = int(np.flatnonzero(found)[0])
        place = int(np.flatnonzero(_same_cell(column, labels.cells[row]))[0])
        text = f"is {labels.name} of hidden row {row + 1} ({hits.sum()} of {len(hits)} hidden values are in the file, "
        text += f"{count} of them in this column; chance {chance:.0%})"
        yield Leak(table.path, column.name, int(table.rows[place]), text)


def _made_up(labels: Labels) -> np.ndarray:  # [rows] str
    """Return values between the hidden ones, printed like them, as a control for matches by chance."""
    if not labels.numeric:
        return np.array([], object)
    rng = np.random.default_rng(_SEED)
    order = np.sort(labels.values)
    between = order[:-1] + rng.uniform(0.2, 0.8, len(order) - 1) * np.diff(order)
    digits = np.sort(labels.decimals)[len(labels.decimals) // 2]
    return np.array([f"{value:.{digits}f}" for value in between], dtype=object)


def _contained(column: Column, cells: np.ndarray, times: int) -> np.ndarray:  # [cells] bool
    """Check for each of `cells` whether the column contains it at least `times` times, at the column's precision."""
    if not len(cells):
        return np.zeros(0, bool)
    values = numbers(cells)
    if np.isnan(values).any():
        counts = dict(zip(*np.unique(column.cells.astype(str), return_counts=True), strict=True))
        return np.array([counts.get(cell, 0) >= times for cell in cells.tolist()])
    found = np.zeros(len(cells), int)
    places = np.flatnonzero(~np.isnan(column.numbers))
    for digits in np.unique(column.decimals[places]):
        keys = np.sort(np.rint(column.numbers[places[column.decimals[places] == digits]] * 10.0**digits))
        wanted = np.rint(values * 10.0**digits)
        found += np.searchsorted(keys, wanted, "right") - np.searchsorted(keys, wanted, "left")
    return found >= times


def _same_cell(column: Column, cell: str) -> np.ndarray:  # [rows] bool
    value = numbers(np.array([cell], dtype=object))[0]
    if np.isnan(value):
        return column.cells == cell
    with np.errstate(invalid="ignore"):
        return np.abs(column.numbers - value) <= 0.501 * 10.0**-column.decimals


def _unlikely(share: float, chance: float, count: int, limit: float = _UNLIKELY) -> bool:
    """Check that agreement of `share` of `count` rows is not by chance, by Chernoff's bound on its probability."""
    p, q = min(max(chance, 1 / count), 1 - 1e-9), min(share, 1 - 1e-12)
    divergence = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)) if q > 0 else 0.0
    return q > p and count * divergence > -np.log(limit)
