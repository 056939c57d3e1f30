"""Shortcuts: predictions without any learning, which must not beat the reference.

    constant          the mean, the median or the most frequent of the public labels
    nearest row       the label of the nearest public row, by raw numbers, by standardised ones, or by words
    ids and order     a line or the nearest neighbour in the ids; public labels, sorted, along the hidden rows
    one column        a column, up to three rows off, unchanged or with the public labels in its order

The best of each kind is graded like any submission.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from environments.tasks.check.tables import Column, Table, numbers

_ROWS = 4000
"""Maximum number of public rows that are compared with the hidden ones."""
_WORDS = 2000
_DOUBT = 0.001
"""Probability that a shortcut assigns to each class that it does not predict."""
_SHIFTS = (0, 1, -1, 2, -2, 3, -3)
_WIDE = 60
"""Number of columns of a table from which its rows are not shifted."""
_NAME = re.compile(r"(.*?)(\d+)")


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A table with a row for each hidden row, and a table of public rows with the same columns."""

    path: str
    columns: tuple[Column, ...]
    """Columns in the hidden rows' order, without a header."""
    shared: tuple[Column, ...] = ()
    """Those columns that the public rows have too."""
    public: tuple[Column, ...] = ()
    """The shared columns of the public rows."""
    targets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Labels of the public rows, `[public rows]` str by hidden column."""


def pair_rows(tables: Sequence[Table], labels: Mapping[str, Sequence[str]]) -> list[Rows]:
    """Return every public table with the hidden rows, paired with one that has public rows and their labels."""
    names = [name for name in labels if name != "id"]
    found = []
    for table in tables:
        columns = _hidden_rows(table, labels["id"])
        if columns is not None:
            rows = _with_public(Rows(table.path, columns), tables, names)
            found.append(rows if rows.targets else _joined(rows, table, tables, names))
    return found


def _hidden_rows(table: Table, ids: Sequence[str]) -> tuple[Column, ...] | None:
    """Return the table's columns in the order of `ids`: by a column that has them all, else if the row counts agree."""
    for column in table.columns:
        place = {cell: row for row, cell in enumerate(column.cells.tolist())}
        if len(place) == len(table) and all(name in place for name in ids):
            return _take(table.columns, np.array([place[name] for name in ids]))
    extra = len(table) - len(ids)
    return _take(table.columns, np.arange(extra, len(table))) if extra in (0, 1) else None


def _take(columns: Sequence[Column], places: np.ndarray) -> tuple[Column, ...]:
    return tuple(Column(column.name, column.cells[places]) for column in columns)


def _with_public(rows: Rows, tables: Sequence[Table], names: Sequence[str]) -> Rows:
    """Add the public table that shares most columns with `rows` and has labels, its own or another table's."""
    wanted = [column.name for column in rows.columns]
    best, most = rows, 0
    for table in tables:
        of_name = {column.name: column for column in table.columns}
        shared = [name for name in wanted if name in of_name]
        if len(wanted) == len(table.columns) == 1:
            shared = wanted  # A file with one text per line has no column names.
        if (
            table.path == rows.path
            or set(table.names()) <= set(names)
            or len(shared) <= most
            or 2 * len(shared) < len(wanted)
        ):
            continue
        targets = _targets(table, tables, names)
        if targets:
            count = len(next(iter(targets.values())))
            places = np.arange(len(table) - count, len(table))
            chosen = [of_name.get(name, table.columns[0]) for name in shared]
            kept = tuple(column for column in rows.columns if column.name in shared)
            best = Rows(rows.path, rows.columns, kept, _take(chosen, places), targets)
            most = len(shared)
    return best


def _joined(rows: Rows, table: Table, tables: Sequence[Table], names: Sequence[str]) -> Rows:
    """Add those rows of its own table that another table labels, by a column of ids that both have."""
    for other in tables:
        targets = {column.name: column.cells for column in other.columns if column.name in names}
        for ids in other.columns if len(targets) == len(names) > 0 else ():
            for column in table.columns:
                place = {cell: row for row, cell in enumerate(column.cells.tolist())}
                known = np.array([cell in place for cell in ids.cells.tolist()])
                if len(place) == len(table) and known.sum() >= max(5, len(known) // 2):
                    places = np.array([place[cell] for cell in ids.cells[known].tolist()])
                    labelled = {name: cells[known] for name, cells in targets.items()}
                    return Rows(rows.path, rows.columns, rows.columns, _take(table.columns, places), labelled)
    return rows


def _targets(table: Table, tables: Sequence[Table], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return labels for the rows of a public table: its columns of these names, or those of an equally long table."""
    for other in (table, *tables):
        found = {column.name: column.cells[1:] for column in other.columns if column.name in names}
        if len(found) == len(names) > 0 and len(other) - 1 in (len(table), len(table) - 1):
            return found
    return {}


@dataclasses.dataclass(frozen=True)
class Guess:
    """Predictions of one shortcut."""

    name: str
    values: dict[str, np.ndarray]
    """Predictions, `[hidden rows]` by hidden column: numbers, or texts."""
    shares: Mapping[str, float] | None = None
    """Probability of each class in every row, if the shortcut predicts it."""


def guesses(rows: Rows, labels: Mapping[str, Sequence[str]], public: Mapping[str, np.ndarray]) -> Iterator[Guess]:
    """Yield each shortcut's predictions for the hidden rows. Of the shifted columns only those that fit best are used.

    Args:
      rows: hidden rows, and public rows with their labels.
      labels: hidden labels by column, to choose the best fit.
      public: labels of any public rows, `[public rows]` str by hidden column, for their distribution.
    """
    truth = {name: _values(np.array(cells, dtype=object)) for name, cells in labels.items() if name != "id"}
    known = {name: _values(cells) for name, cells in public.items()}
    count = len(labels["id"])
    if rows.targets:
        known = {name: _values(cells) for name, cells in rows.targets.items()}
        for how, public, hidden in measures(rows):
            nearest = _closest(public, hidden)
            yield Guess(f"nearest public row {how}", {name: values[nearest] for name, values in known.items()})
        yield from _along_ids(rows, known)
    if known:
        yield from _constants(known, count)
        for name, order in (("their order", np.arange(count)), ("their order, from the last", -np.arange(count))):
            guess = {column: _in_order(order, values) for column, values in known.items()}
            yield Guess(f"public labels, sorted, along the hidden rows in {name}", guess)
    yield from _columns(rows, truth, known)


def _values(cells: np.ndarray) -> np.ndarray:
    """Convert cells to numbers if all of them are, else to texts."""
    values = numbers(cells)
    return cells if np.isnan(values).any() else values


def _constants(known: Mapping[str, np.ndarray], count: int) -> Iterator[Guess]:
    commonest, shares = {}, {}
    for name, values in known.items():
        distinct, often = np.unique(values.astype(str) if values.dtype == object else values, return_counts=True)
        commonest[name] = distinct[often.argmax()]
        shares = dict(zip(_labels(distinct), often / often.sum(), strict=True))
    if len(known) == 1:
        constant = {name: np.full(count, value) for name, value in commonest.items()}
        yield Guess("the shares of the public labels", constant, shares)
    choices = {"commonest": commonest}
    if all(values.dtype != object for values in known.values()):
        choices |= {how: {name: f(values) for name, values in known.items()} for how, f in _MIDDLES.items()}
    for how, middle in choices.items():
        yield Guess(f"the {how} of the public labels", {name: np.full(count, value) for name, value in middle.items()})


_MIDDLES = {"mean": np.mean, "median": np.median}


def measures(rows: Rows) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield public and hidden rows as points, `[rows, dimensions]`, in each of three measures."""
    public, hidden = ([column.numbers for column in part] for part in (rows.public, rows.shared))
    numeric = [
        place
        for place, (one, other) in enumerate(zip(public, hidden, strict=True))
        if min(np.isfinite(one).mean(), np.isfinite(other).mean()) > 0.5
    ]
    if numeric:
        known, wanted = (np.column_stack([part[place] for place in numeric]) for part in (public, hidden))
        known, wanted = np.nan_to_num(known[:_ROWS]), np.nan_to_num(wanted)
        yield "by raw numbers", known, wanted
        spread = known.std(axis=0) + 1e-12
        yield "by standardised numbers", known / spread, wanted / spread
    texts = [place for place in range(len(public)) if place not in numeric]
    if texts:
        known, wanted = (_words(part, texts) for part in (rows.public, rows.shared))
        both = [word for word in _commonest(known[:_ROWS]) if word]
        yield "by words", _counts(known[:_ROWS], both), _counts(wanted, both)


def _words(columns: Sequence[Column], places: Sequence[int]) -> list[list[str]]:
    return [" ".join(cells).lower().split() for cells in zip(*(columns[p].cells.tolist() for p in places), strict=True)]


def _commonest(texts: Sequence[Sequence[str]]) -> list[str]:
    words, often = np.unique([word for text in texts for word in text] or [""], return_counts=True)
    return words[np.argsort(-often, kind="stable")[:_WORDS]].tolist()


def _counts(texts: Sequence[Sequence[str]], words: Sequence[str]) -> np.ndarray:  # [texts, words], of length 1
    place = {word: number for number, word in enumerate(words)}
    table = np.zeros((len(texts), len(words)), np.float32)
    for row, text in enumerate(texts):
        for word in text:
            if word in place:
                table[row, place[word]] += 1
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)


def distances(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return squared distances of all pairs: `[known, columns]`, `[wanted, columns]` -> `[wanted, known]`."""
    centre = known.mean(axis=0)
    known, wanted = known - centre, wanted - centre
    return np.maximum((wanted**2).sum(axis=1)[:, None] - 2 * wanted @ known.T + (known**2).sum(axis=1), 0.0)


def _closest(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:  # [wanted]
    parts = np.array_split(wanted, max(1, len(wanted) // 1000))
    return np.concatenate([distances(known, part).argmin(axis=1) for part in parts])


def _along_ids(rows: Rows, known: Mapping[str, np.ndarray]) -> Iterator[Guess]:
    """Predict from the numbers in ids alone, of the first column that has one in every row and looks like ids."""
    for one, other in zip(rows.public, rows.shared, strict=True):
        public, hidden = _id_numbers(one), _id_numbers(other)
        if public is None or hidden is None:
            continue
        order = np.argsort(public, kind="stable")
        right = np.clip(np.searchsorted(public[order], hidden), 1, len(order) - 1)
        closer = hidden - public[order[right - 1]] < public[order[right]] - hidden
        nearest = order[np.where(closer, right - 1, right)]
        column = other.name
        yield Guess(f"nearest public number in {column!r}", {name: values[nearest] for name, values in known.items()})
        if all(values.dtype != object for values in known.values()):
            line = {name: np.polyval(np.polyfit(public, values, 1), hidden) for name, values in known.items()}
            yield Guess(f"a line over {column!r}", line)
        return


def _id_numbers(column: Column) -> np.ndarray | None:  # [rows]
    """Return the last number in each cell, if the cells differ and all have one."""
    cells = column.cells.tolist()
    found = [re.search(r"(\d{1,15})\D*$", cell) for cell in cells]
    if len(set(cells)) < len(cells) or not all(found) or not all(re.fullmatch(r"[\w-]*", cell) for cell in cells):
        return None
    return np.array([float(match[1]) for match in found])


def _columns(rows: Rows, truth: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]) -> Iterator[Guess]:
    """Yield, for all hidden columns together, the best column and shift, unchanged and by its order."""
    as_it_is: dict[str, tuple[float, str, np.ndarray]] = {}
    by_order: dict[str, tuple[float, str, np.ndarray]] = {}
    for name, wanted in truth.items():
        for column in rows.columns:
            for shift in _SHIFTS if len(rows.columns) <= _WIDE else _SHIFTS[:1]:
                _try(column, shift, name, wanted, known, as_it_is, by_order)
    for how, best in (("as it is", as_it_is), ("by its order", by_order)):
        if len(best) == len(truth):
            said = ", ".join(sorted({column for _, column, _ in best.values()}))
            yield Guess(f"column {said}, {how}", {name: guess for name, (_, _, guess) in best.items()})


def _try(
    column: Column,
    shift: int,
    name: str,
    wanted: np.ndarray,
    known: Mapping[str, np.ndarray],
    as_it_is: dict[str, tuple[float, str, np.ndarray]],
    by_order: dict[str, tuple[float, str, np.ndarray]],
) -> None:
    said = f"{column.name!r}" + (f" {shift:+} rows" if shift else "")
    if wanted.dtype == object:
        guess = _shifted(column.cells, shift)
        _keep(as_it_is, name, (guess == wanted).mean(), said, guess)
        return
    guess = _shifted(column.numbers, shift)
    if np.isfinite(guess).mean() < 0.9:
        return
    guess = np.where(np.isfinite(guess), guess, np.nanmedian(guess))
    _keep(as_it_is, name, -np.abs(guess - wanted).mean(), said, guess)
    if name in known and guess.std() > 0 and wanted.std() > 0:
        fit = np.corrcoef(_ranks(guess), _ranks(wanted))[0, 1]
        _keep(by_order, name, abs(fit), said, _in_order(guess if fit > 0 else -guess, known[name]))


def _keep(best: dict[str, tuple[float, str, np.ndarray]], name: str, fit: float, said: str, guess: np.ndarray) -> None:
    if name not in best or fit > best[name][0]:
        best[name] = (fit, said, guess)


def _shifted(cells: np.ndarray, shift: int) -> np.ndarray:
    """Shift the cells by `shift` rows; the last ones fill the end."""
    return cells[np.clip(np.arange(len(cells)) + shift, 0, len(cells) - 1)]


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _in_order(order: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the public labels, sorted and evenly spread, in the order of `order`."""
    share = (_ranks(order) - 1) / max(len(order) - 1, 1)
    return np.sort(known)[np.rint(share * (len(known) - 1)).astype(int)]


def submission(guess: Guess, id_column: str, kinds: Mapping[str, str], ids: Sequence[str]) -> bytes | None:
    """Convert a guess to a submission with these columns; None if the conversion is unknown."""
    columns = _submitted(guess, list(kinds), len(ids))
    if columns is None:
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([id_column, *kinds])
    printed = [_print(columns[name], kind) for name, kind in kinds.items()]
    writer.writerows(zip(ids, *printed, strict=True))
    return text.getvalue().encode()


def _submitted(guess: Guess, columns: Sequence[str], count: int) -> dict[str, np.ndarray] | None:
    values = guess.values
    if set(columns) <= set(values):
        return {name: values[name] for name in columns}
    if len(columns) == len(values):
        return dict(zip(columns, values.values(), strict=True))
    if len(values) > 1:
        return None
    texts = _labels(next(iter(values.values())))
    if columns[0].startswith("top_"):
        others = range(len(columns) + 1)
        first = np.rint(next(iter(values.values())).astype(float)).astype(int).tolist()
        ranked = [[one, *(other for other in others if other != one)] for one in first]
        return {name: np.array([row[place] for row in ranked]) for place, name in enumerate(columns)}
    # One column per class, named after the class or numbered like it.
    classes = [name if name in texts else (_NAME.fullmatch(name) or ["", "", name])[2] for name in columns]
    if guess.shares is not None:
        shares = [guess.shares.get(label, 0.0) for label in classes]
        found = {name: np.full(count, share) for name, share in zip(columns, shares, strict=True)}
    else:
        sure = 1 - _DOUBT * (len(columns) - 1)
        found = {name: np.where(texts == one, sure, _DOUBT) for name, one in zip(columns, classes, strict=True)}
    return found if np.allclose(np.sum(list(found.values()), axis=0), 1.0) else None


def _labels(values: np.ndarray) -> np.ndarray:  # [rows] str
    """Convert classes to texts: `1` for 1.0."""
    return np.array([f"{value:g}" if isinstance(value, float) else str(value) for value in values.tolist()])


def _print(values: np.ndarray, kind: str) -> list[str]:
    if values.dtype.kind not in "biuf":
        return [str(value) for value in values]
    if kind == "integer":
        return [f"{value:.0f}" for value in np.rint(values)]
    clipped = np.clip(values, 0, 1) if kind == "probability" else values
    return [f"{value:.9g}" for value in clipped]
