"""The traits line of a prompt: facts about the public data, in a few words of a fixed vocabulary.

Every word is computed from the training rows, never from the data's generator: the policy reads facts that a
practitioner would find in the first minute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from environments.tasks.grading import metrics

if TYPE_CHECKING:
    from environments.tasks.generated.dataset import Dataset

_STEPS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def describe(kind: str, metric_name: str, data: Dataset) -> str:
    """Return one line such as `tabular regression, 200 rows, 10 columns, scales differ, skewed target`."""
    metric = metrics.get(metric_name)
    targets = data.targets[: data.train_rows]
    words = [
        f"{kind.replace('_', ' ')} {'classification' if metric.classification else 'regression'}",
        f"{nearest(data.train_rows)} rows",
    ]
    if data.inputs.ndim == 2:
        # For a series, measure only the history, which follows the columns for time and steps ahead.
        measured = data.inputs[: data.train_rows, 2 if kind == "time_series" else 0 :]
        words += [f"{nearest(data.inputs.shape[1])} columns", *_of_inputs(measured)]
    words += _of_classes(targets) if metric.classification else _of_numbers(targets)
    if kind == "time_series":
        words += [f"period {data.period}", f"up to {data.horizon} ahead"]
    return ", ".join(words)


def nearest(count: int) -> int:
    """Round `count` to a step of 1, 2, 5: a number that a small vocabulary holds."""
    return min(_STEPS, key=lambda step: abs(np.log(step / count)))


def _of_inputs(inputs: np.ndarray) -> list[str]:
    words = []
    missing = np.isnan(inputs).mean()
    if missing > 0:
        words.append("many missing" if missing > 0.1 else "missing")
    scale = np.nanstd(inputs, axis=0)
    scale = scale[scale > 0]
    if scale.max() > 30 * scale.min():
        words.append("scales differ")
    centred = (inputs - np.nanmean(inputs, axis=0)) / np.maximum(np.nanstd(inputs, axis=0), 1e-12)
    if np.nanquantile(np.abs(np.nanmean(centred**3, axis=0)), 0.6) > 2:
        words.append("skewed columns")
    filled = np.nan_to_num(centred)
    related = np.abs(filled.T @ filled / len(filled)) - np.eye(inputs.shape[1])
    if np.mean(related.max(axis=0) > 0.9) > 0.3:
        words.append("redundant columns")
    return words


def _of_classes(targets: np.ndarray) -> list[str]:
    counts = np.bincount(targets.astype(int))
    words = [f"{len(counts)} classes"]
    if counts.min() < 0.4 * counts.mean():
        words.append("imbalanced")
    return words


def _of_numbers(targets: np.ndarray) -> list[str]:
    words = [] if targets.ndim == 1 else [f"{targets.shape[1]} outputs"]
    first = targets.reshape(len(targets), -1)[:, 0]
    low, middle, high = np.quantile(first, (0.1, 0.5, 0.9))
    if high + low - 2 * middle > 0.35 * (high - low):
        words.append("skewed target")
    elif np.mean((first > high + 1.5 * (high - low)) | (first < low - 1.5 * (high - low))) > 0.01:
        words.append("outliers")
    return words
