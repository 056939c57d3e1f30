"""Detection of columns that reveal the target (nearly) exactly on their own. With them, a task would be trivial."""

from __future__ import annotations

import numpy as np
import pandas as pd

from environments.factory.profile import Column

_EXACT = 0.995
"""Minimum share of the variation above chance that one column must explain to count as the target."""
_LEAST_ROWS_PER_GROUP = 3.0
_SAMPLE = 20_000


def tells(column: Column, target: np.ndarray, classes: bool) -> str:
    """Return the way in which `column` reveals the target, or an empty text.

    Args:
      column: Column with the role number, category or date; others reveal nothing.
      target: Class codes or numbers, `[rows]`.
      classes: Whether the target is a class.
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
    """Return a finding if a few thresholds on the values separate the classes, or equal values have equal classes."""
    order = np.argsort(values, kind="stable")
    codes, held = target[order], values[order]
    changes = int(np.sum((codes[1:] != codes[:-1]) & (held[1:] != held[:-1])))
    tied = pd.Series(codes).groupby(held).nunique().gt(1).any()
    if not tied and changes <= 2 * (len(set(codes.tolist())) - 1) and len(codes) >= 30:
        return "separates the classes by its value alone"
    return _by_group(values.astype(str).astype(object), target, classes=True)


def _by_group(cells: np.ndarray, target: np.ndarray, classes: bool) -> str:
    """Return a finding if equal cells have equal targets, and cells repeat often enough for that to be no accident."""
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
