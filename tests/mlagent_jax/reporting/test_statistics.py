"""Means and intervals against plain loops, SciPy, textbook formulas and known truth."""

import itertools

import numpy as np
import pytest
import scipy.stats

from mlagent_jax.reporting import statistics
from mlagent_jax.reporting.statistics import Episode


@pytest.mark.parametrize("df", [1, 2, 3, 5, 9, 39, 500])
def test_student_quantiles_agree_with_scipy(df):
    ours = [statistics.student_quantile(p, df) for p in (0.025, 0.5, 0.975)]
    np.testing.assert_allclose(ours, scipy.stats.t.ppf([0.025, 0.5, 0.975], df), rtol=1e-3, atol=1e-6)


def test_the_mean_weighs_samples_alike_whatever_their_cluster():
    estimate = statistics.clustered_mean([1.0, 2.0, 6.0], ["a", "a", "b"])
    assert (estimate.mean, estimate.n, estimate.clusters) == (3.0, 3, 2)


def test_the_interval_is_that_of_resampling_clusters_in_plain_loops():
    rng = np.random.default_rng(1)
    groups = [rng.normal(rng.normal(), 0.3, size=size) for size in rng.integers(1, 6, size=12)]
    values = np.concatenate(groups)
    labels = [index for index, group in enumerate(groups) for _ in group]
    estimate = statistics.clustered_mean(values, labels, resamples=20_000)
    means = []
    for _ in range(20_000):
        drawn = [groups[index] for index in rng.integers(0, 12, size=12)]
        means.append(np.mean(np.concatenate(drawn)))
    tail = scipy.stats.norm.cdf(scipy.stats.t.ppf(0.025, 11) * np.sqrt(12 / 11))
    np.testing.assert_allclose(estimate.ci95, np.quantile(means, [tail, 1 - tail]), atol=0.02 * np.std(values))


def test_many_clusters_of_one_give_scipys_bootstrap():
    values = np.random.default_rng(2).exponential(size=400)
    ours = statistics.clustered_mean(values, range(400), resamples=20_000).ci95
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    np.testing.assert_allclose(ours, (theirs.low, theirs.high), atol=0.006)


@pytest.mark.parametrize("clusters", [3, 4, 10, 40])
def test_intervals_of_few_clusters_cover_the_truth_as_often_as_they_say(clusters):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        centres = rng.normal(size=clusters)
        values = (centres[:, None] + rng.normal(size=(clusters, 4))).ravel()
        low, high = statistics.clustered_mean(values, np.repeat(range(clusters), 4).tolist(), resamples=600).ci95
        covered += low <= 0.0 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_of_a_handful_of_clusters_the_interval_is_students():
    values = np.random.default_rng(8).normal(size=6)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval()
    np.testing.assert_allclose(statistics.clustered_mean(values, range(6)).ci95, expected, rtol=1e-3)


def test_copies_of_a_sample_in_its_cluster_make_no_interval_narrower():
    values = np.random.default_rng(4).normal(size=20)
    once = statistics.clustered_mean(values, range(20))
    copied = statistics.clustered_mean(np.repeat(values, 8), np.repeat(range(20), 8).tolist())
    np.testing.assert_allclose(copied.ci95, once.ci95)
    assert (copied.n, copied.clusters) == (160, 20)


def test_one_cluster_has_no_interval():
    assert statistics.clustered_mean([1.0, 2.0], ["a", "a"]).ci95 is None


def test_the_same_data_gives_the_same_interval():
    values = np.random.default_rng(5).normal(size=30)
    assert statistics.clustered_mean(values, range(30)) == statistics.clustered_mean(values, range(30))


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], [], "one label a value"), ([1.0], [1, 2], "one label a value"), ([np.nan], [1], "NaN")],
)
def test_values_that_have_no_mean_are_refused(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        statistics.clustered_mean(values, clusters)


def test_a_paired_difference_cancels_what_a_state_does_to_both():
    rng = np.random.default_rng(6)
    first, second = {}, {}
    for state in range(40):
        luck = 5 * rng.normal()
        first["run", state] = luck + 0.3 + 0.1 * rng.normal(size=4)
        second["run", state] = luck + 0.1 * rng.normal(size=4)
    estimate = statistics.paired_difference(first, second)
    expected = np.mean([first[key].mean() - second[key].mean() for key in first])
    assert estimate.mean == pytest.approx(expected)
    assert 0.2 < estimate.ci95[0] < 0.3 < estimate.ci95[1] < 0.4


def test_only_states_that_both_have_are_compared_and_only_within_a_run():
    first = {("a", 1): [1.0], ("a", 2): [9.0], ("b", 1): [3.0]}
    second = {("a", 1): [0.5], ("b", 1): [1.0], ("b", 2): [7.0]}
    estimate = statistics.paired_difference(first, second)
    assert (estimate.mean, estimate.n, estimate.clusters) == (1.25, 2, 1)
    assert statistics.paired_difference({("a", 1): [1.0]}, {("b", 1): [1.0]}) is None


def test_relative_gain_is_that_of_the_paper_in_both_directions():
    assert statistics.relative_gain(0.9, 0.6, higher_is_better=True) == pytest.approx(0.5)
    assert statistics.relative_gain(20_209, 21_626, higher_is_better=False) == pytest.approx(1417 / 21_626)
    assert statistics.relative_gain(-0.2, -0.4, higher_is_better=True) == pytest.approx(0.5)


@pytest.mark.parametrize(("score", "start"), [(1.0, 0.0), (np.nan, 1.0), (1.0, np.inf)])
def test_relative_gain_is_undefined_where_nothing_can_be_said(score, start):
    assert statistics.relative_gain(score, start, higher_is_better=True) is None


def test_gain_averages_episodes_then_tasks_and_takes_the_best_of_each_run():
    episodes = [
        *(Episode("t1", run, gain) for run, gain in (("r1", 0.1), ("r1", 0.3), ("r2", 0.5), ("r2", 0.1))),
        *(Episode("t2", run, gain) for run, gain in (("r1", 0.0), ("r2", 0.4))),
    ]
    gain = statistics.gain(episodes, 2)
    assert gain.avg.mean == pytest.approx(np.mean([0.25, 0.2]))
    assert gain.best == pytest.approx(np.mean([(0.3 + 0.5) / 2, (0.0 + 0.4) / 2]))
    assert (gain.avg.n, gain.avg.clusters) == (6, 2)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_best_of_k_is_the_mean_over_all_choices_of_k(k):
    gains = np.random.default_rng(k).normal(size=5).round(1).tolist()
    choices = list(itertools.combinations(gains, min(k, 5)))
    assert statistics.expected_best(gains, k) == pytest.approx(np.mean([max(choice) for choice in choices]))


@pytest.mark.parametrize(("gains", "k"), [([], 1), ([0.1], 0)])
def test_the_best_of_nothing_is_refused(gains, k):
    with pytest.raises(ValueError, match="must be at least 1"):
        statistics.expected_best(gains, k)


def test_the_interval_of_a_gain_is_by_task_and_that_of_one_task_by_episode():
    rng = np.random.default_rng(7)
    tasks = {f"t{index}": rng.normal(size=3) for index in range(6)}
    episodes = [Episode(task, "r", gain) for task, gains in tasks.items() for gain in gains]
    by_task = statistics.clustered_mean([gains.mean() for gains in tasks.values()], list(tasks))
    assert statistics.gain(episodes, 3).avg.ci95 == by_task.ci95
    alone = statistics.gain(episodes[:3], 3).avg
    assert alone.ci95 == statistics.clustered_mean(tasks["t0"], range(3)).ci95


def test_a_difference_of_gains_is_paired_by_task():
    ours = [Episode("t1", "r", 0.5), Episode("t1", "r", 0.1), Episode("t2", "r", 1.0), Episode("t3", "r", 9.0)]
    theirs = [Episode("t1", "r", 0.1), Episode("t2", "r", 0.8)]
    gain = statistics.gain_difference(ours, theirs, 2)
    assert gain.avg.mean == pytest.approx((0.2 + 0.2) / 2)
    assert gain.best == pytest.approx((0.4 + 0.2) / 2)
    assert gain.avg.clusters == 2
    assert statistics.gain_difference(ours, [], 2) is None
