"""Choice of a task's target form, metric, columns and split from a table's profile; each has a reason and a flag.

RawTable + Wishes -> Plan: normalised cells and decisions, or a RefusalError that names the reason
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from environments.factory import leaks
from environments.factory.profile import Column, Profile, looks_like_group, looks_like_time, profile
from environments.factory.reading import RawTable, RefusalError
from environments.tasks.grading import metrics
from environments.tasks.grading.metrics import Form

LEAST_ROWS = 40
"""Minimum number of labelled rows, with which each half of the hidden labels has at least 8."""
_CLASS_ROWS = 8
"""Minimum number of rows per class, so that the class can be in the public rows and in both halves."""
_MOST_CLASSES = 50
_FEW_VALUES = 10
"""Maximum number of distinct whole numbers that count as classes."""
_HIDDEN = {400: 0.5, 2000: 0.4}
"""Share of hidden rows by number of rows: a table with fewer rows than a key gets its value, others 0.3."""
_HIDDEN_LARGE = 0.3
_MOST_HIDDEN = 3000
_SORTED = 0.98
_OFTEN = 0.5
"""Share of repeated rows above which they are kept."""
_GRADES = ("grade", "rating", "stars", "quality", "score", "level", "satisf", "severity")
SPLITS = ("random", "stratified", "group", "time")


@dataclasses.dataclass(frozen=True)
class Wishes:
    """Choices of the user; empty fields are chosen automatically."""

    target: str
    metric: str = ""
    kind: str = ""
    split: str = ""
    time: str = ""
    """Column of a `time` split."""
    group: str = ""
    """Column of a `group` split; rows with equal values stay on one side."""
    text: str = ""
    """Column to treat as text."""
    hidden: float = 0.0
    """Share of hidden rows."""
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    """Columns to keep although they look like ids or like the target."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """One choice with its reason and the flag that changes it."""

    what: str
    value: str
    reason: str
    flag: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Plan of a task, from which its folder is written."""

    table: pd.DataFrame
    """Normalised cells, `[rows, columns]`: the columns that scripts see, the split's column, and the target `y0`."""
    target: str
    kind: str
    metric: str
    roles: Mapping[str, str]
    """Role of each column that scripts see."""
    classes: tuple[str, ...]
    """Names of the classes by code; empty for a regression."""
    split: str
    split_column: str
    hidden: float
    decisions: tuple[Decision, ...]
    attention: tuple[str, ...]
    """Remarks that a person should check."""
    profile: Profile

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that prepare.py reads."""
        names = ("target", "kind", "metric", "roles", "classes", "split", "split_column", "hidden")
        return {name: getattr(self, name) for name in names}


TARGET = "y0"
"""Column of the coded target in the prepared table."""


def choose(raw: RawTable, wishes: Wishes) -> Plan:
    """Plan the task that predicts `wishes.target`.

    Args:
      raw: Cells of the table.
      wishes: Choices of the user.

    Raises:
      RefusalError: The table cannot become a task, or a choice of the user does not fit the table.
    """
    table, target = raw.cells, wishes.target
    for name in (target, *filter(None, (wishes.time, wishes.group, wishes.text, *wishes.drop, *wishes.keep))):
        if name not in table:
            near = difflib.get_close_matches(name, list(table), n=1)
            raise RefusalError(
                f"the table has no column {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; it has "
                f"{', '.join(list(table)[:20])}"
            )
    attention = list(raw.notes)
    unlabelled = int((table[target] == "").sum())
    if unlabelled:
        attention.append(f"{unlabelled} rows without a {target} were left out")
    table = table[table[target] != ""].reset_index(drop=True)
    repeated = table.duplicated()
    if repeated.mean() > _OFTEN:
        # A table of few different values: repetitions show how common each row is.
        attention.append(f"{int(repeated.sum())} rows repeat another one: rows of equal inputs stay together")
    elif repeated.any():
        attention.append(f"{int(repeated.sum())} rows that repeat another one exactly were left out")
        table = table[~repeated].reset_index(drop=True)
    if len(table) < LEAST_ROWS:
        raise RefusalError(
            f"{len(table)} different rows with a {target}: at least {LEAST_ROWS} are needed, so that both "
            "halves of the hidden rows say something"
        )
    found = profile(table)
    decisions: list[Decision] = []
    codes, classes, metric, kept_rows = _target(found.columns[target], wishes, decisions, attention)
    if not kept_rows.all():
        table = table[kept_rows].reset_index(drop=True)
        found = profile(table)
    roles = _roles(found, codes, bool(classes), wishes, decisions, attention)
    if not roles:
        raise RefusalError("no column is left to predict from: all are ids, constant, empty or the target itself")
    kind = _kind(raw, roles, wishes, decisions)
    split, split_column = _split(found, table, roles, bool(classes), wishes, decisions, attention)
    hidden = wishes.hidden or next((share for rows, share in _HIDDEN.items() if len(table) < rows), _HIDDEN_LARGE)
    hidden = min(hidden, _MOST_HIDDEN / len(table)) if not wishes.hidden else hidden
    if not 0.05 <= hidden <= 0.8:
        raise RefusalError(f"--hidden is {hidden:g}; it must be from 0.05 to 0.8")
    rows_hidden = round(hidden * len(table))
    reason = f"{len(table)} rows: {rows_hidden} hidden ones in two halves"
    decisions.append(Decision("hidden rows", f"{hidden:.0%}", reason, "--hidden"))
    if rows_hidden < 100:
        attention.append(f"only {rows_hidden} hidden rows: scores are noisy")
    cells = {name: found.columns[name].cells for name in roles}
    if split_column and split_column not in cells:
        cells[split_column] = found.columns[split_column].cells
    prepared = pd.DataFrame(cells, dtype=object).assign(**{TARGET: codes.astype(int) if classes else codes})
    return Plan(
        prepared, target, kind, metric, roles, classes, split, split_column, float(hidden), tuple(decisions),
        tuple(attention), found,
    )  # fmt: skip


def _target(
    column: Column, wishes: Wishes, decisions: list[Decision], attention: list[str]
) -> tuple[np.ndarray, tuple[str, ...], str, np.ndarray]:
    """Choose the form of the target and the metric.

    Returns:
      Class codes or numbers of the kept rows, class names (empty for numbers), the metric, and the mask of kept rows.
    """
    name = column.name
    if column.role in ("constant", "empty") or column.distinct < 2:
        raise RefusalError(f"{name} is the same in every row: there is nothing to predict")
    if wishes.metric and wishes.metric not in metrics.METRICS:
        raise RefusalError(f"--metric is {wishes.metric!r}; choose one of {', '.join(sorted(metrics.METRICS))}")
    wanted = metrics.get(wishes.metric) if wishes.metric else None
    numeric = column.role == "number" or (column.role == "id" and not np.isnan(column.numbers).all())
    if numeric and column.role == "id" and not (wanted and not wanted.classification):
        raise RefusalError(f"{name} numbers the rows: it is an id and no target")
    values = column.numbers if numeric else np.zeros(0)
    whole = numeric and bool(np.all(values[~np.isnan(values)] == np.rint(values[~np.isnan(values)])))
    few = column.distinct <= (_FEW_VALUES if whole else 2)
    many = numeric and not few and (wanted is None or not wanted.classification or column.distinct > _MOST_CLASSES)
    if many:
        kept = ~np.isnan(values)
        _refuse_form(wanted, classes=False)
        return values[kept], (), _regression_metric(values[kept], wanted, decisions), kept
    if not numeric and column.role in ("id", "text", "date"):
        raise RefusalError(
            f"{name} is {'an id' if column.role == 'id' else f'a {column.role}'} of {column.distinct} "
            "different values: choose a target of classes or numbers"
        )
    cells = pd.Series([_canonical(cell) for cell in column.cells] if numeric else column.cells, dtype=object)
    counts = cells[cells != ""].value_counts()
    rare = set(counts.index[counts < _CLASS_ROWS])
    kept = (~cells.isin(rare) & (cells != "")).to_numpy()
    left = [label for label in counts.index if label not in rare]
    if len(left) < 2:
        raise RefusalError(f"{name} has fewer than two classes with at least {_CLASS_ROWS} rows")
    if len(left) > _MOST_CLASSES:
        raise RefusalError(f"{name} has {len(left)} classes; at most {_MOST_CLASSES} are taken")
    if (~kept).sum() > 0.2 * len(cells):
        raise RefusalError(f"{name}: {(~kept).sum()} of {len(cells)} rows are of classes with under {_CLASS_ROWS} rows")
    if rare:
        attention.append(
            f"{int((~kept).sum())} rows of {len(rare)} rare classes (under {_CLASS_ROWS} rows) were left out"
        )
    ordinal = whole and len(left) >= 3 and any(word in name.lower() for word in _GRADES)
    if len(left) == 2 and not numeric:
        left.sort(key=lambda label: (-counts[label], label))  # Class 1 is the rarer one.
    else:
        left.sort(key=(lambda label: float(label)) if numeric else None)
    code = {label: place for place, label in enumerate(left)}
    codes = np.array([code[cell] for cell in cells[kept]], dtype=float)
    _refuse_form(wanted, classes=True)
    metric = wanted.name if wanted else _class_metric(codes, ordinal, decisions)
    if wanted:
        decisions.append(Decision("metric", metric, "as asked", "--metric"))
    if metric == "auc" and len(left) != 2:
        raise RefusalError(f"--metric auc needs two classes; {name} has {len(left)}")
    if metric == "map_at_3" and len(left) < 4:
        raise RefusalError(f"--metric map_at_3 needs at least 4 classes; {name} has {len(left)}")
    return codes, tuple(str(label)[:40] for label in left), metric, kept


def _canonical(cell: str) -> str:
    """Return one text for equal numbers: `1` for `1.0`; an empty cell stays so."""
    return f"{float(cell):.0f}" if cell and float(cell).is_integer() else repr(float(cell)) if cell else ""


def _refuse_form(wanted: metrics.Metric | None, classes: bool) -> None:
    if wanted is None:
        return
    fits = wanted.classification or wanted.form is Form.ORDINAL if classes else not wanted.classification
    if not fits or wanted.form is Form.NUMBERS or (not classes and wanted.form is Form.ORDINAL):
        raise RefusalError(f"--metric {wanted.name} does not fit a target of {'classes' if classes else 'numbers'}")


def _regression_metric(values: np.ndarray, wanted: metrics.Metric | None, decisions: list[Decision]) -> str:
    if wanted is not None:
        if wanted.name == "rmsle" and values.min() < 0:
            raise RefusalError("--metric rmsle needs a target that is never negative")
        decisions.append(Decision("metric", wanted.name, "as asked", "--metric"))
        return wanted.name
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    far = np.mean(np.abs(values - middle) > 2.5 * max(high - low, 1e-12))
    if values.min() >= 0 and middle > 0 and high > 8 * middle:
        name, reason = "rmsle", "never negative, and spread over orders of magnitude"
    elif far > 0.002:
        name, reason = "mae", "numbers with outliers, which would decide a squared error"
    else:
        name, reason = "rmse", "numbers without outliers"
    decisions.append(Decision("metric", name, reason, "--metric"))
    return name


def _class_metric(codes: np.ndarray, ordinal: bool, decisions: list[Decision]) -> str:
    counts = np.bincount(codes.astype(int))
    rarest = counts.min() / len(codes)
    if ordinal:
        name, reason = "qwk", f"{len(counts)} grades in an order"
    elif len(counts) == 2:
        balanced = rarest >= 0.35
        name = "accuracy" if balanced else "auc"
        reason = f"two classes, the rarer one {rarest:.0%}" + ("" if balanced else ": accuracy would favour the other")
    elif rarest * len(counts) < 0.4:
        name, reason = "macro_f1", f"{len(counts)} classes, of which the rarest has {rarest:.0%} of the rows"
    elif len(counts) <= 4:
        name, reason = "log_loss", f"{len(counts)} balanced classes: probabilities say more than the likeliest class"
    else:
        name, reason = "accuracy", f"{len(counts)} balanced classes"
    decisions.append(Decision("metric", name, reason, "--metric"))
    return name


def _roles(
    found: Profile, codes: np.ndarray, classes: bool, wishes: Wishes, decisions: list[Decision], attention: list[str]
) -> dict[str, str]:
    """Return the roles of the columns that scripts see; append a decision for each column that is left out."""
    roles: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, column in found.columns.items():
        if name in (wishes.target, TARGET):
            continue
        if name in wishes.drop:
            left_out[name] = "as asked"
            continue
        role = "text" if name == wishes.text else column.role
        if role == "id" and name in wishes.keep:
            role = "number" if not np.isnan(column.numbers).all() else "category"
        if role in ("id", "constant", "empty"):
            left_out[name] = column.note
            continue
        telling = leaks.tells(column, codes, classes) if name not in wishes.keep else ""
        if telling:
            left_out[name] = telling
            attention.append(f"{name} {telling}: it was left out. If it is known when predicting, --keep={name!r}")
            continue
        if column.note:
            attention.append(f"{name}: {column.note}")
        roles[name] = role
    for name, why in list(left_out.items())[:20]:
        decisions.append(Decision("left out", name, why, "--keep"))
    return roles


def _kind(raw: RawTable, roles: Mapping[str, str], wishes: Wishes, decisions: list[Decision]) -> str:
    texts = sum(role == "text" for role in roles.values())
    if wishes.kind:
        if wishes.kind not in ("tabular", "text", "image") or (wishes.kind == "image" and raw.kind != "image"):
            raise RefusalError(f"--kind is {wishes.kind!r}: choose tabular or text (image for a folder of images)")
        kind, reason = wishes.kind, "as asked"
    elif raw.kind == "image":
        kind, reason = "image", "a folder of images"
    elif texts and texts * 2 >= len(roles):
        kind, reason = "text", "texts make up most of the columns"
    else:
        kind, reason = "tabular", f"{len(roles)} columns, {texts} of them texts"
    decisions.insert(0, Decision("kind", kind, reason, "--kind"))
    return kind


def _split(
    found: Profile,
    table: pd.DataFrame,
    roles: Mapping[str, str],
    classes: bool,
    wishes: Wishes,
    decisions: list[Decision],
    attention: list[str],
) -> tuple[str, str]:
    """Return the split, one of `SPLITS`, and its column; the column is empty if the split needs none."""
    how, by, reason = wishes.split, "", "as asked"
    if how and how not in SPLITS:
        raise RefusalError(f"--split is {how!r}; choose one of {', '.join(SPLITS)}")
    groups = wishes.group or next((name for name in found.columns if _groups(found.columns[name], wishes)), "")
    times = wishes.time or next((name for name in found.columns if _is_order(found.columns[name], wishes)), "")
    if (wishes.time or how == "time") and not times:
        raise RefusalError("--split=time needs a column of dates or times: name it with --time")
    if how == "group" and not groups:
        raise RefusalError("--split=group needs a column whose rows belong together: name it with --group")
    if not how:
        if wishes.group:
            how = "group"
        elif wishes.time:
            how = "time"
        elif times:
            how, reason = "time", f"the rows are in the order of {times}: later ones are predicted from earlier ones"
        elif groups:
            how, reason = "group", f"rows of one {groups} resemble each other: they stay on one side"
        elif classes:
            how, reason = "stratified", "classes: each has its share of hidden rows"
        else:
            how, reason = "random", "nothing says that rows belong together or follow each other"
    by = {"group": groups, "time": times}.get(how, "")
    features = table[list(roles)] if roles else table
    if how in ("random", "stratified") and (twins := int(features.duplicated().sum())):
        attention.append(f"{twins} rows equal another one in all columns but the target: they stay on one side")
    if how == "group" and found.columns[by].distinct < 6:
        raise RefusalError(
            f"{by} has {found.columns[by].distinct} groups: a group split needs at least 6 (--split changes it)"
        )
    decisions.append(Decision("split", f"{how}{f' by {by}' if by else ''}", reason, "--split, --time, --group"))
    return how, by


def _groups(column: Column, wishes: Wishes) -> bool:
    if column.name == wishes.target or column.role not in ("category", "number", "date") or column.missing:
        return False
    rows = len(column.cells)
    return looks_like_group(column.name) and 20 <= column.distinct <= rows / 2


def _is_order(column: Column, wishes: Wishes) -> bool:
    """Return whether a column of dates, or of numbers with a name of a time, is sorted over the whole table."""
    if column.name == wishes.target or column.missing or column.distinct < 20:
        return False
    if column.role == "date":
        keys = pd.Series(column.cells).rank(method="dense").to_numpy()
    elif column.role in ("number", "id") and looks_like_time(column.name) and not np.isnan(column.numbers).any():
        keys = column.numbers
    else:
        return False
    steps = np.diff(keys)
    return bool(max(np.mean(steps >= 0), np.mean(steps <= 0)) >= _SORTED)
