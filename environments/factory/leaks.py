"""Columns that are the target in other words: each alone tells it (nearly) exactly, so a task with them is no task."""

from __future__ import annotations

import numpy as np
import pandas as pd

from environments.factory.profile import Column

_EXACT = 0.995
"""Minimum share of the target's variation that one column explains, above chance, to count as the target."""
_LEAST_ROWS_PER_GROUP = 3.0
_SAMPLE = 20_000


def tells(column: Column, target: np.ndarray, classes: bool) -> str:
    """Return why `column` gives the target away, or an empty text.

    Args:
      column: a column of role number, category or date.
      target: class codes as integers or numbers, `[rows]`.
      classes: whether the target is a class.
    """
    target = target[:_SAMPLE]
    if column.role == "number":
        values = column.numbers[:_SAMPLE]
        known = ~np.isnan(values)
        if known.sum() < 20:
            return ""
        return (
            _of_classes_by_order(values[known], target[known]) if classes else _of_numbers(values[known], target[known])
        )
    if column.role in ("category", "date"):
        return _by_group(column.cells[:_SAMPLE], target, classes)
    return ""


def _of_numbers(values: np.ndarray, target: np.ndarray) -> str:
    if np.ptp(values) == 0 or np.ptp(target) == 0:
        return ""
    if abs(np.corrcoef(values, target)[0, 1]) > 0.9995:
        return "is the target on another scale"
    ranks = np.stack([pd.Series(part).rank().to_numpy() for part in (values, target)])
    if abs(np.corrcoef(ranks)[0, 1]) > 0.9995 and len(set(values.tolist())) > 20:
        return "orders the rows as the target does"
    return _by_group(values.astype(str).astype(object), target, classes=False)


def _of_classes_by_order(values: np.ndarray, target: np.ndarray) -> str:
    """Check whether a few thresholds on the values separate the classes."""
    order = np.argsort(values, kind="stable")
    codes, held = target[order], values[order]
    changes = int(np.sum((codes[1:] != codes[:-1]) & (held[1:] != held[:-1])))
    tied = pd.Series(codes).groupby(held).nunique().gt(1).any()
    if not tied and changes <= 2 * (len(set(codes.tolist())) - 1) and len(codes) >= 30:
        return "separates the classes by its value alone"
    return _by_group(values.astype(str).astype(object), target, classes=True)


def _by_group(cells: np.ndarray, target: np.ndarray, classes: bool) -> str:
    """Check whether equal cells have equal targets, where cells repeat often enough for that to mean something."""
    groups = pd.factorize(pd.Series(cells))[0]
    count = groups.max() + 1
    if count < 2 or len(groups) < _LEAST_ROWS_PER_GROUP * count:
        return ""
    frame = pd.Series(target).groupby(groups)
    if classes:
        majority = np.bincount(target.astype(int)).max() / len(target)
        share = frame.agg(lambda part: part.value_counts().iloc[0]).sum() / len(target)
        exact = share - majority >= _EXACT * (1 - majority) and majority < 1
    else:
        whole = np.var(target)
        exact = whole > 0 and 1 - np.mean((target - frame.transform("mean").to_numpy()) ** 2) / whole >= 0.9999
    return "is a code of the target" if exact else ""
