"""Resampling, augmentation and disguise of the small data sets that libraries bundle, by the seed.

1. The original rows are split into a public and a hidden pool, so that no hidden row descends from a public one.
2. Each pool is enlarged by interpolating between near neighbours of like target, as SMOTE does, with a little noise.
3. Columns are shuffled, and each passes through its own affine map, drawn from the seed.

This prevents a look-up of hidden labels in the public originals: rows are blends, columns have no names, and the agent
does not know the maps. It does not hide the identity of the data set from an expert.
"""

from __future__ import annotations

import numpy as np


def split_pools(rows: int, public_share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the original rows of the public and of the hidden pool, in random order."""
    order = rng.permutation(rows)
    return np.split(order, [round(public_share * rows)])


def enlarge(
    inputs: np.ndarray,  # [originals, columns]
    targets: np.ndarray,  # [originals] or [originals, outputs]
    count: int,
    rng: np.random.Generator,
    noise: float = 0.1,
    neighbours: int = 5,
    classes: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` rows, each a blend of an original and one of its near neighbours, plus normal noise.

    With `classes` the neighbours are of the same class; otherwise the target is blended too. `noise` is in standard
    deviations.
    """
    spread = inputs.std(axis=0) + 1e-12
    scaled = inputs / spread
    distance = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=2)
    if classes:
        distance[targets[:, None] != targets[None]] = np.inf
    nearest = np.argsort(distance, axis=1)[:, : neighbours + 1]
    first = rng.permutation(np.resize(rng.permutation(len(inputs)), count))
    second = nearest[first, rng.integers(nearest.shape[1], size=count)]
    second = np.where(np.isinf(distance[first, second]), first, second)
    share = rng.uniform(0.0, 0.5, size=count)
    blend = inputs[first] + share[:, None] * (inputs[second] - inputs[first])
    blend += noise * spread * rng.normal(size=blend.shape)
    if classes:
        return blend, targets[first]
    weight = share if targets.ndim == 1 else share[:, None]
    return blend, targets[first] + weight * (targets[second] - targets[first])


def disguise(inputs: np.ndarray, rng: np.random.Generator, scales: float = 1.0) -> np.ndarray:
    """Shuffle the columns and map each as a x + b; `scales` is the spread of log10 |a|."""
    centred = (inputs - inputs.mean(axis=0)) / (inputs.std(axis=0) + 1e-12)
    width = inputs.shape[1]
    factor = 10.0 ** rng.normal(0.0, scales, size=width) * rng.choice([-1.0, 1.0], size=width)
    return (centred * factor + factor * rng.normal(0.0, 2.0, size=width))[:, rng.permutation(width)]
