"""An embedded task: its spec, two scripts, and a function from a random generator to its data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from environments.protocol import Limits
from environments.tasks.generated.dataset import Dataset, write
from environments.tasks.generated.scripts import Script
from environments.tasks.task import TaskSpec

LIMITS = Limits(cpu_seconds=6.0, wall_seconds=60.0)
"""Limits of one execution. Our scripts take about 0.1 s; importing scikit-learn in a cold interpreter takes up to 3."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An `environments.tasks.task.Task` with generated data."""

    spec: TaskSpec
    data: Callable[[np.random.Generator], Dataset]
    start: Script
    reference: Script
    draw: int = 0
    """Index of the draw: another number gives other data for the same seed."""

    def build(self, directory: Path, seed: int) -> TaskSpec:
        # The name is part of the seed: tasks of one run share no random numbers.
        name = int.from_bytes(hashlib.sha256(self.spec.name.encode()).digest()[:4], "big")
        data = self.data(np.random.default_rng([seed, name, self.draw]))
        return write(directory, self.spec, data, self.start, self.reference, seed)


def embedded(
    name: str,
    kind: str,
    split: str,
    metric: str,
    description: str,
    source: str,
    data: Callable[[np.random.Generator], Dataset],
    start: Script,
    reference: Script,
) -> Recipe:
    """Return a recipe whose traits come from its data (`Recipe.build` returns the spec with them)."""
    spec = TaskSpec(
        name=name,
        kind=kind,
        split=split,
        metric=metric,
        description=description,
        traits=kind.replace("_", " "),
        source=source,
        read_only=("helper.py", "loading.py"),
        limits=LIMITS,
    )
    return Recipe(spec, data, start, reference)
