"""Estimate of the part of a search's gain that is due to chance. The best of many candidates is partly the luckiest on
the rows that it was chosen by.

Bootstrap bias correction (Tsamardinos, Greasidou and Borboudakis 2018, "Bootstrapping the out-of-sample predictions for
efficient and accurate cross-validation"), on the half of the labels that the search sees: on each resample of the rows
the best candidate is chosen again. The mean of its gains on the rows left out is the corrected gain. The optimism of
the choice is the gain of the best candidate minus the corrected one. The estimate needs no label of the other half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from environments.protocol import Scale

DRAWS = 100
MAX_CANDIDATES = 200
"""Maximum candidates that are scored again, the best ones."""
WARNING_SHARE = 0.25
"""Share of the gain that may be chance before there is a warning."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Estimates of the choice of the best candidate, in units of the task's gap."""

    candidates: int
    """Number of different submissions that were chosen among, without the starting script's."""
    apparent: float
    """Gain of the best over the starting script on the half that the search sees."""
    noise: float
    """Standard error of that gain over the rows of the half."""
    optimism: dict[int, float]
    """Part of the gain that is due to choosing, by number of candidates; the first ones found are counted."""

    @property
    def corrected(self) -> float:
        """Return the gain without the part that is due to choosing."""
        return self.apparent - self.optimism[self.candidates]

    @property
    def warning(self) -> str:
        """Return a warning if much of the gain is chance that grows with the candidates; else an empty string."""
        numbers = sorted(self.optimism)
        last, half = self.optimism[numbers[-1]], self.optimism[numbers[-2]] if len(numbers) > 1 else 0.0
        if self.apparent <= 0 or last <= max(half, WARNING_SHARE * self.apparent):
            return ""
        return (
            f"of the gain of {self.apparent:.3f} gaps that the search saw, about {last:.3f} is due to choosing among "
            f"{numbers[-1]} candidates ({half:.3f} among the first {numbers[-2] if len(numbers) > 1 else 0}): more "
            "candidates fit the rows that they are chosen by. Use more rows, or a smaller budget"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the estimates as JSON data, for `score.json`."""
        return {
            "candidates": self.candidates,
            "apparent_gain": self.apparent,
            "noise_of_gain": self.noise,
            "corrected_gain": self.corrected,
            "optimism_by_candidates": {str(number): value for number, value in self.optimism.items()},
        }


def estimate(
    submissions: Sequence[str],
    scale: Scale,
    resampled: Callable[[str | None], list[list[float | None]] | None],
) -> Selection | None:
    """Estimate the optimism of choosing the best of `submissions`.

    Args:
      submissions: Ids of different submissions, in the order in which they were found.
      scale: Reference points of the task.
      resampled: Maps a submission's id (None: the starting script's) to pairs of scores, see `FolderTask.resampled`.

    Returns:
      None if the task's grader cannot score parts of a table, or there is no submission.
    """
    start = resampled(None) if submissions else None
    if start is None:
        return None
    tables = [start, *(resampled(submission) for submission in submissions)]
    sign = (1.0 if scale.higher_is_better else -1.0) / (scale.gap or 1.0)
    scores = sign * np.array([[[np.nan if x is None else x for x in pair] for pair in table] for table in tables])
    whole = np.isfinite(scores).all(axis=(0, 2))  # [draws]: draws with a missing score are excluded
    gains = (scores - scores[:1])[:, whole]  # [candidates + 1, draws, in or out of the sample]
    if not gains.shape[1]:
        return None
    optimism = {number: _optimism(gains[: number + 1]) for number in _numbers(len(submissions))}
    best = int(np.argmax(gains[:, :, 0].mean(axis=1)))
    return Selection(
        candidates=len(submissions),
        apparent=float(gains[best, :, 0].mean()),
        noise=float(gains[best, :, 0].std()),
        optimism=optimism,
    )


def _optimism(gains: np.ndarray) -> float:
    """Return the mean gain of the best candidate, minus the mean gain outside the sample of the best one inside it.

    `gains` is [candidates, draws, 2], in and out of the sample.
    """
    chosen = np.argmax(gains[:, :, 0], axis=0)
    draws = np.arange(gains.shape[1])
    return float(gains[:, :, 0].mean(axis=1).max() - gains[chosen, draws, 1].mean())


def _numbers(count: int) -> list[int]:
    """Return 1, and `count` halved again and again."""
    numbers = {1, count}
    while count > 1:
        count //= 2
        numbers.add(count)
    return sorted(numbers)
