"""Detection of hidden rows that have a twin among the public rows, with the same label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from environments.tasks.check.search import Leak
from environments.tasks.check.shortcuts import Rows, distances, measures

_NEAR = 0.02
"""Distance below which two rows are twins, as a share of the typical distance to the nearest public row."""
_MORE = 0.02
"""Share of hidden rows with a twin, beyond twice that of the public rows, above which it is a leak."""
_LEAST = 5
_AGREE = 0.8


def twins(rows: Rows, labels: Mapping[str, Sequence[str]]) -> Iterator[Leak]:
    """Yield a leak if more hidden rows have a public twin than public rows do, and the twins' labels agree."""
    if not rows.targets:
        return
    for _, known, wanted in measures(rows):
        nearest, distance = _nearest(known, wanted, skip_self=False)
        _, among = _nearest(known, known, skip_self=True)
        limit = _NEAR * np.median(among) + 1e-9
        near, usual = distance <= limit, (among <= limit).mean()
        found = np.flatnonzero(near)
        if len(found) < max(_LEAST, (2 * usual + _MORE) * len(near)):
            continue
        same = [
            np.array(cells, dtype=object)[found] == rows.targets[name][nearest[found]]
            for name, cells in labels.items()
            if name in rows.targets
        ]
        if np.mean(same) >= _AGREE:
            first = found[0]
            text = f"hidden row {first + 1} is public row {nearest[first] + 1} once more, with its label "
            text += f"({len(found)} of {len(near)} hidden rows have such a twin, {usual:.0%} of the public rows)"
            yield Leak(rows.path, "all", int(first) + 1, text)
            return


def _nearest(known: np.ndarray, wanted: np.ndarray, skip_self: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return index of and distance to the nearest row of `known`. [wanted], [wanted]"""
    squares = distances(known, wanted)
    if skip_self:
        np.fill_diagonal(squares, np.inf)
    return squares.argmin(axis=1), np.sqrt(squares.min(axis=1))
