"""How the small data sets that come with libraries become tasks: resampled, augmented and disguised by the seed.

1. The original rows are split into a public and a hidden pool, so that no hidden row descends from a public one.
2. Each pool is enlarged by interpolating between near neighbours of like target, as SMOTE does, with a little noise.
3. Columns are shuffled and each is passed through an affine map of its own, drawn from the seed.

This protects against looking hidden labels up in the public originals: rows are blends, columns have no names, and the
maps are unknown to the agent. It does not hide which data set it is from someone who knows it well.
"""

from __future__ import annotations

import numpy as np


def split_pools(rows: int, public_share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Original rows of the public and of the hidden pool, in random order."""
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
    """`count` rows, each a blend of an original and one of its near neighbours (of its own class, with `classes`; else
    the target is blended too), plus normal noise of `noise` standard deviations."""
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
    """Columns in another order, each mapped as a x + b; `scales` is the spread of log10 |a|."""
    centred = (inputs - inputs.mean(axis=0)) / (inputs.std(axis=0) + 1e-12)
    width = inputs.shape[1]
    factor = 10.0 ** rng.normal(0.0, scales, size=width) * rng.choice([-1.0, 1.0], size=width)
    return (centred * factor + factor * rng.normal(0.0, 2.0, size=width))[:, rng.permutation(width)]
