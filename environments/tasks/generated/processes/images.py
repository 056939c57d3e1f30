"""Images: figures on a noisy background to classify, and patches of noisy scenes, to restore their middle pixel."""

from __future__ import annotations

import dataclasses

import numpy as np

from environments.tasks.generated.dataset import Dataset

SIDE = 8
FIGURES = ("row", "column", "cross", "ring", "diagonal", "spot")


@dataclasses.dataclass(frozen=True)
class Figures:
    """8 x 8 images of `classes` kinds of figures, anywhere in the image, on noise."""

    rows: int
    hidden: int
    classes: int
    noise: float = 2.0
    """Standard deviation of the noise; figures have a brightness of about 8."""

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data."""
        figures = rng.permutation(len(FIGURES))[: self.classes]
        labels = rng.integers(self.classes, size=self.rows + self.hidden)
        images = np.stack([_figure(FIGURES[figures[label]], rng) for label in labels])
        images = images + self.noise * rng.normal(size=images.shape)
        return Dataset(np.rint(images).reshape(len(images), -1), labels, self.rows)


def _figure(name: str, rng: np.random.Generator) -> np.ndarray:  # [SIDE, SIDE]
    """Draw one figure at a random place, of random brightness."""
    i, j = rng.integers(2, SIDE - 2, size=2)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    down, right = rows - i, columns - j
    near = np.maximum(abs(down), abs(right)) <= 2
    mask = {
        "row": (down == 0) & (abs(right) <= 3),
        "column": (right == 0) & (abs(down) <= 3),
        "cross": ((down == 0) | (right == 0)) & near,
        "ring": np.maximum(abs(down), abs(right)) == 2,
        "diagonal": (abs(down - right) == 0) & (abs(down) <= 3),
        "spot": np.maximum(abs(down), abs(right)) <= 1,
    }[name]
    return mask * rng.uniform(6.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Patches:
    """5 x 5 patches cut from noisy scenes; the target is the middle pixel without noise."""

    rows: int
    hidden: int
    noise: float = 2.0
    edges: bool = True
    """Whether scenes are flat regions with sharp borders; otherwise they are smooth waves."""

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data. Every patch is from its own scene, so hidden patches overlap with no public one."""
        scenes = np.stack([_scene(self.edges, rng) for _ in range(self.rows + self.hidden)])
        return noisy_patches(scenes, self.noise, self.rows, rng)


def noisy_patches(scenes: np.ndarray, noise: float, train_rows: int, rng: np.random.Generator) -> Dataset:
    """Make denoising data from clean patches, `[patches, side, side]`; a tenth of the pixels is lost too (0 or 16)."""
    dirty = scenes + noise * rng.normal(size=scenes.shape)
    lost = rng.random(scenes.shape) < 0.1
    dirty = np.where(lost, rng.choice([0.0, 16.0], size=scenes.shape), dirty)
    middle = scenes.shape[1] // 2
    return Dataset(np.round(dirty, 1).reshape(len(scenes), -1), scenes[:, middle, middle], train_rows)


def _scene(edges: bool, rng: np.random.Generator) -> np.ndarray:  # [5, 5]
    rows, columns = np.mgrid[-2:3, -2:3]
    angle, offset = rng.uniform(0, 2 * np.pi), rng.normal(0, 1.0)
    along = np.cos(angle) * rows + np.sin(angle) * columns + offset
    if edges:
        low, high = rng.uniform(0, 16, size=2)
        return np.where(along > 0, high, low)
    return 8 + rng.uniform(2, 7) * np.sin(rng.uniform(0.3, 1.2) * along + rng.uniform(0, 2 * np.pi))
