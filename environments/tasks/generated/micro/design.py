"""Families of micro-tasks: each draws a design from the name and, given the design, the data from the seed of the run.

A design fixes everything that a practitioner knows before seeing the data: sizes, metric, both scripts. The model of
its starting script does not suit the data. Mostly a second cell is weak too, so that edits of several cells can help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from environments.tasks.generated.dataset import Dataset
from environments.tasks.generated.scripts import Script

HIDDEN_ROWS = 600


@dataclasses.dataclass(frozen=True)
class Design:
    """One micro-task before its data are drawn."""

    metric: str
    data: Callable[[np.random.Generator], Dataset]
    start: Script
    reference: Script


@dataclasses.dataclass(frozen=True)
class Family:
    """Micro-tasks of one character."""

    name: str
    kind: str
    split: str
    description: str
    """Research problem; also how the data are generated."""
    design: Callable[[np.random.Generator], Design]


def pick(rng: np.random.Generator, options: Sequence):  # noqa: ANN201 - an element of whatever `options` holds
    """Draw one of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def weaken(
    rng: np.random.Generator, script: Script, weaknesses: Sequence[dict[str, str]], rate: float = 0.75
) -> Script:
    """With probability `rate`, apply one of `weaknesses` (fields of `Script`) to `script`."""
    return dataclasses.replace(script, **pick(rng, weaknesses)) if rng.random() < rate else script
