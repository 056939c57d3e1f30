"""Tabular tasks from the data sets that come with scikit-learn (see `environments.tasks.sampling`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn import datasets

from environments.tasks.dataset import Dataset
from environments.tasks.recipe import Recipe, embedded
from environments.tasks.sampling import disguise, enlarge, split_pools
from environments.tasks.scripts import Script

_SOURCE = (
    "scikit-learn's {name} data: originals split into a public and a hidden pool, each enlarged by blending neighbours "
    "with noise, columns shuffled and mapped, all by the seed."
)


def _bundled(
    load: Callable[..., tuple[np.ndarray, np.ndarray]],
    train: int,
    hidden: int,
    noise: float,
    classes: bool,
    scales: float = 1.0,
    missing: float = 0.0,
    label_noise: float = 0.0,
) -> Callable[[np.random.Generator], Dataset]:
    """Data function over a bundled data set; `missing` is a share of cells, `label_noise` of training labels."""

    def data(rng: np.random.Generator) -> Dataset:
        inputs, targets = load(return_X_y=True)
        parts = [
            enlarge(inputs[pool], targets[pool], count, rng, noise, classes=classes)
            for pool, count in zip(split_pools(len(inputs), 0.5, rng), (train, hidden), strict=True)
        ]
        inputs = disguise(np.vstack([part[0] for part in parts]), rng, scales)
        inputs[rng.random(inputs.shape) < missing] = np.nan
        targets = np.concatenate([part[1] for part in parts])
        wrong = np.flatnonzero(rng.random(train) < label_noise)
        targets[wrong] = rng.permutation(targets[wrong])
        return Dataset(inputs, targets, train)

    return data


def recipes() -> tuple[Recipe, ...]:
    """All of this kind."""
    return (
        embedded(
            name="breast-cancer",
            kind="tabular",
            split="train",
            metric="auc",
            description="Tell malignant from benign tumours by 30 measurements of cell nuclei, some of them missing.",
            source=_SOURCE.format(name="breast cancer"),
            data=_bundled(datasets.load_breast_cancer, 200, 600, 1.0, True, missing=0.1, label_noise=0.1),
            start=Script(model="DecisionTreeClassifier(max_depth=3)"),
            reference=Script(load='fill="mean"', steps="StandardScaler()", model="LogisticRegression(C=0.1)"),
        ),
        embedded(
            name="diabetes",
            kind="tabular",
            split="train",
            metric="rmse",
            description="Predict how far diabetes progresses within a year from ten measurements of a patient.",
            source=_SOURCE.format(name="diabetes"),
            data=_bundled(datasets.load_diabetes, 200, 600, 0.1, False),
            start=Script(model="DecisionTreeRegressor()"),
            reference=Script(steps="StandardScaler()", model="Ridge(alpha=10)"),
        ),
    )
