"""Means with intervals of nominal coverage: cluster bootstrap, for step rewards and relative gains of episodes.

Samples from one state (or episodes on one task) are correlated, so the clusters are resampled, not the samples.
Percentile intervals of a moderate number of clusters are too narrow; here the percentiles are moved outwards until a
normal mean has its nominal coverage (the "expanded percentile" interval of Hesterberg, What Teachers Should Know About
the Bootstrap, 2015, section 4.3). Below 10 clusters no resampling is wide enough, since it never leaves the range of
the observed clusters (4 tasks would be covered 86% of the time): there the interval is Student's, with the
cluster-robust standard error. Everything is deterministic: the random generator has a fixed seed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95
FEW_CLUSTERS = 10
"""Number of clusters below which the interval is Student's instead of the bootstrap's."""
_CHUNK_CELLS = 4_000_000
"""Maximum resampled numbers in memory at once."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean with its uncertainty."""

    mean: float
    ci95: tuple[float, float] | None
    """95% interval; None with one cluster, whose spread is unknown."""
    n: int
    """Number of samples."""
    clusters: int
    """Number of independent units among them."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One trajectory of an evaluation, as graded on the report half of the labels."""

    task: Hashable
    run: Hashable
    """Training run (seed) of the episode: best@k is taken within a run."""
    gain: float
    """Relative gain, from `relative_gain`."""


@dataclasses.dataclass(frozen=True)
class Gain:
    """Relative gain over tasks."""

    avg: Estimate
    """avg@n: mean over the episodes of a task, then over tasks; the interval by task, or by episode for one task."""
    best: float
    """best@k: `expected_best` of the episodes of a run on a task, mean over runs, then over tasks."""


def relative_gain(score: float, start: float, higher_is_better: bool) -> float | None:
    """Return the relative gain over the starting script, `beta * (p - b) / |b|` (PAPER: beta * (p - b) / b, the same
    for b > 0); beta is 1 if higher is better, else -1. None if it is undefined: `start` is zero, or either is not
    finite."""
    if not (np.isfinite(score) and np.isfinite(start)) or start == 0:
        return None
    return (1 if higher_is_better else -1) * (score - start) / abs(start)


def student_quantile(p: float, df: int) -> float:
    """Return the quantile `p` of Student's t with `df` degrees of freedom, by integrating its density.

    With t = sqrt(df) * tan(x) the density in x is proportional to cos(x) ** (df - 1), on a finite range.
    """
    x = np.linspace(-np.pi / 2, np.pi / 2, 20001)[1:-1]
    density = np.cos(x) ** (df - 1)
    below = np.cumsum(density) - density / 2
    return float(np.sqrt(df) * np.tan(np.interp(p * density.sum(), below, x)))


def _student_interval(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return the interval of the ratio of totals, with its linearised standard error; [C] sums and sizes of
    clusters."""
    clusters, total = len(sums), sizes.sum()
    mean = sums.sum() / total
    error = np.sqrt(clusters / (clusters - 1) * np.sum((sums - mean * sizes) ** 2)) / total
    margin = student_quantile((1 + CONFIDENCE) / 2, clusters - 1) * error
    return float(mean - margin), float(mean + margin)


def _bootstrap_interval(sums: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Return the interval of the ratio of totals, by resampling clusters; the tail cut at either end is
    Phi(sqrt(C/(C-1)) * t_{C-1})."""
    clusters = len(sums)
    rng = np.random.default_rng(seed)
    uniform = np.full(clusters, 1 / clusters)
    chunk = max(1, _CHUNK_CELLS // clusters)
    means = []
    for begin in range(0, resamples, chunk):
        drawn = rng.multinomial(clusters, uniform, size=min(chunk, resamples - begin))  # [chunk, C], how often each
        means.append((drawn @ sums) / (drawn @ sizes))
    quantile = student_quantile((1 - CONFIDENCE) / 2, clusters - 1)
    tail = statistics.NormalDist().cdf(quantile * (clusters / (clusters - 1)) ** 0.5)
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _codes(labels: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Return labels as 0..C-1 in order of appearance, and C."""
    index: dict[Hashable, int] = {}
    codes = [index.setdefault(label, len(index)) for label in labels]
    return np.asarray(codes, dtype=np.int64), len(index)


def clustered_mean(
    values: Sequence[float], clusters: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return the mean of `values` [n], equally weighted, with a 95% interval over `clusters` [n] (labels).

    Raises:
      ValueError: No values, values that are not finite, or another number of labels.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or len(array) != len(clusters):
        raise ValueError(f"values has shape {array.shape} and {len(clusters)} cluster labels: give one label a value")
    if not np.isfinite(array).all():
        raise ValueError("values holds NaN or inf: leave such samples out, and count them")
    codes, count = _codes(clusters)
    sums = np.bincount(codes, weights=array, minlength=count)
    sizes = np.bincount(codes, minlength=count)
    if count < 2:
        interval = None
    elif count < FEW_CLUSTERS:
        interval = _student_interval(sums, sizes)
    else:
        interval = _bootstrap_interval(sums, sizes, resamples, seed)
    return Estimate(mean=float(array.mean()), ci95=interval, n=len(array), clusters=count)


def stratified_interval(
    groups: Sequence[Sequence[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95% interval of the mean of the groups' means, for exactly these groups. The values of each are
    resampled, as many as it has, and the spread of its mean is widened by sqrt(n / (n - 1)). None if a group has only
    one value."""
    if not groups or min(map(len, groups)) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        drawn = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
        wider = (len(values) / (len(values) - 1)) ** 0.5
        means += (values.mean() + wider * (drawn - values.mean())) / len(groups)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_difference(
    first: Mapping[tuple[Hashable, Hashable], Sequence[float]],
    second: Mapping[tuple[Hashable, Hashable], Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """Return the mean of `first` minus `second` over common keys; None without any.

    Keys are (run, state): means are paired within a run on the same state, every pair has equal weight, and the states
    are resampled, so that a state of several runs counts as one cluster. `n` is the number of pairs.
    """
    pairs = [key for key in first if key in second]
    if not pairs:
        return None
    differences = [float(np.mean(first[key]) - np.mean(second[key])) for key in pairs]
    return clustered_mean(differences, [state for _, state in pairs], resamples=resamples, seed=seed)


def _by_task(episodes: Sequence[Episode]) -> dict[Hashable, list[Episode]]:
    tasks: dict[Hashable, list[Episode]] = {}
    for episode in episodes:
        tasks.setdefault(episode.task, []).append(episode)
    return tasks


def expected_best(gains: Sequence[float], k: int) -> float:
    """Return best@k: the best of k of these gains, averaged over all choices of k; the best of all if there are at most
    k.

    The estimator of pass@k (Chen et al., 2021, arXiv 2107.03374), for a maximum: sum over i of `C(i - 1, k - 1) / C(n,
    k)` times the i-th smallest. It is unbiased and has less variance than the best of k episodes.

    Raises:
      ValueError: k is below 1, or there are no gains.
    """
    ordered = sorted(gains)
    if k < 1 or not ordered:
        raise ValueError(f"best@{k} of {len(ordered)} episodes: both must be at least 1")
    k = min(k, len(ordered))
    return sum(math.comb(i, k - 1) * gain for i, gain in enumerate(ordered)) / math.comb(len(ordered), k)


def _best(episodes: Sequence[Episode], k: int) -> float:
    """Return best@k of each run, averaged over runs: pooling runs must not turn best@k into best@(runs * k)."""
    runs: dict[Hashable, list[float]] = {}
    for episode in episodes:
        runs.setdefault(episode.run, []).append(episode.gain)
    return float(np.mean([expected_best(gains, k) for gains in runs.values()]))


def gain(episodes: Sequence[Episode], k: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Gain:
    """Return avg@n and best@k of `episodes`, every task with equal weight.

    Raises:
      ValueError: No episodes.
    """
    if not episodes:
        raise ValueError("no episodes: a gain needs at least one")
    tasks = _by_task(episodes)
    if len(tasks) == 1:
        avg = clustered_mean([e.gain for e in episodes], range(len(episodes)), resamples=resamples, seed=seed)
    else:
        means = [float(np.mean([e.gain for e in group])) for group in tasks.values()]
        avg = dataclasses.replace(
            clustered_mean(means, list(tasks), resamples=resamples, seed=seed), n=len(episodes), clusters=len(tasks)
        )
    return Gain(avg=avg, best=float(np.mean([_best(group, k) for group in tasks.values()])))


def gain_difference(
    first: Sequence[Episode], second: Sequence[Episode], k: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Gain | None:
    """Return `gain` of `first` minus that of `second` over common tasks, paired by task; None without any."""
    ours, theirs = _by_task(first), _by_task(second)
    tasks = [task for task in ours if task in theirs]
    if not tasks:
        return None
    means = [float(np.mean([e.gain for e in ours[t]]) - np.mean([e.gain for e in theirs[t]])) for t in tasks]
    count = sum(len(ours[t]) + len(theirs[t]) for t in tasks)
    avg = dataclasses.replace(clustered_mean(means, tasks, resamples=resamples, seed=seed), n=count)
    return Gain(avg=avg, best=float(np.mean([_best(ours[t], k) - _best(theirs[t], k) for t in tasks])))
