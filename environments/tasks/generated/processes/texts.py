"""Texts: words of an invented language, drawn by topic or by the writer's skill; and a disguise for real texts."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence

import numpy as np

from environments.tasks.generated.dataset import Dataset

_WORDS = 400
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")


def _vocabulary(rng: np.random.Generator) -> np.ndarray:  # [words] str
    words: dict[str, None] = {}
    while len(words) < _WORDS:
        words["".join(rng.choice(_SYLLABLES, size=rng.integers(1, 5)))] = None
    return np.array(list(words))


def _zipf(rng: np.random.Generator) -> np.ndarray:  # [words]
    """Return word frequencies by Zipf's law, with ranks in random order."""
    return rng.permutation(1.0 / np.arange(1, _WORDS + 1))


@dataclasses.dataclass(frozen=True)
class Topics:
    """Texts of 10 to 40 words. A topic makes its own 20 words more frequent, and is the target."""

    rows: int
    hidden: int
    classes: int
    strength: float = 4.0
    """Factor on the frequency of a topic's words."""

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data."""
        words, common = _vocabulary(rng), _zipf(rng)
        shares = []
        for _ in range(self.classes):
            share = common.copy()
            share[rng.choice(_WORDS, 20, replace=False)] *= self.strength
            shares.append(share / share.sum())
        labels = rng.integers(self.classes, size=self.rows + self.hidden)
        texts = [" ".join(rng.choice(words, rng.integers(10, 40), p=shares[label])) for label in labels]
        return Dataset(np.array(texts), labels, self.rows)


@dataclasses.dataclass(frozen=True)
class Essays:
    """Texts of 20 to 60 words by writers of different skill.

    Skilled writers use more of a second vocabulary of rare words, and less of a third of fillers. The target is the
    skill, in `grades` grades or as a number.
    """

    rows: int
    hidden: int
    grades: int = 5
    """Number of grades; 0: the target is a number."""

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data."""
        words, common = _vocabulary(rng), _zipf(rng)
        rare, filler = common.copy(), common.copy()
        chosen = rng.permutation(_WORDS)
        rare[chosen[:60]] *= 10
        filler[chosen[60:80]] *= 20
        skill = rng.random(self.rows + self.hidden)
        texts = []
        for value in skill:
            share = common / common.sum() + value * rare / rare.sum() + (1 - value) * filler / filler.sum()
            texts.append(" ".join(rng.choice(words, rng.integers(20, 60), p=share / share.sum())))
        targets = np.minimum(np.floor(skill * self.grades), self.grades - 1) if self.grades else 100 * skill
        return Dataset(np.array(texts), targets, self.rows)


def disguise_texts(texts: Sequence[str], rng: np.random.Generator, keep: float = 0.75) -> np.ndarray:  # [texts] str
    """Lower-case real texts, permute letters secretly, and drop a share of the words.

    This prevents a look-up of the original text, and use of a model's knowledge of the words. It is not encryption.
    """
    letters = "".join(rng.permutation(list(string.ascii_lowercase)))
    table = str.maketrans(string.ascii_lowercase, letters)
    disguised = []
    for text in texts:
        plain = "".join(letter if letter in string.ascii_lowercase else " " for letter in text.lower())
        words = [word for word in plain.split() if rng.random() < keep]
        disguised.append(" ".join(words or plain.split()[:1] or ["x"]).translate(table))
    return np.array(disguised)
