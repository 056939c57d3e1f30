"""Read-only: inputs of a time-series task. A row is a unit of its own: the time of the value to predict, how many steps
after the last known value it lies (`ahead`), and the history up to that last value, oldest first."""

import json
from pathlib import Path

import numpy as np


def inputs(lags=2, season=False, trend=False):
    """Inputs of the training rows and of the rows to predict, `[rows, columns]`; the newest value comes first.

    lags: so many newest values; the column after them says how many steps ahead the value to predict lies.
    season: add where in its cycle the value to predict lies (a sine and a cosine), and the value whole cycles before.
    trend: add mean, spread and slope of the history.
    """
    period = json.loads(Path("data/about.json").read_text())["period"]
    parts = (np.loadtxt(f"data/{name}.csv", delimiter=",", skiprows=1, ndmin=2) for name in ("train", "test"))
    return tuple(_describe(part, lags, period if season else None, trend) for part in parts)


def _describe(table, lags, period, trend):
    time, ahead, history = table[:, 0], table[:, 1].astype(int), table[:, :1:-1]
    columns = [history[:, :lags], ahead[:, None]]
    if period:
        angle = 2 * np.pi * time / period
        cycle_before = history[np.arange(len(history)), -ahead % period]
        columns.append(np.column_stack([np.sin(angle), np.cos(angle), cycle_before]))
    if trend:
        columns.append(np.column_stack([history.mean(axis=1), history.std(axis=1), history[:, :4].mean(axis=1)]))
    return np.hstack(columns)
