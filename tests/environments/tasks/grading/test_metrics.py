"""Every metric agrees with scikit-learn or a plain loop, on data with ties, several columns and edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from environments.tasks.grading import metrics
from environments.tasks.grading.metrics import METRICS

ROWS = 200


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("seed", range(5))
def test_label_metrics(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.integers(4, size=(2, ROWS))
    assert METRICS["accuracy"](truth, guess[:, None]) == pytest.approx(sk.accuracy_score(truth, guess))
    assert METRICS["macro_f1"](truth, guess[:, None]) == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    kappa = sk.cohen_kappa_score(truth, guess, weights="quadratic")
    assert METRICS["qwk"](truth.astype(float), guess[:, None]) == pytest.approx(kappa)


def test_macro_f1_counts_a_class_that_is_never_guessed(rng):
    truth = rng.integers(3, size=ROWS)
    guess = np.zeros(ROWS, dtype=int)
    assert METRICS["macro_f1"](truth, guess[:, None]) == pytest.approx(sk.f1_score(truth, guess, average="macro"))


def test_auc_with_and_without_ties(rng):
    truth = rng.integers(2, size=ROWS)
    for scores in (rng.normal(size=ROWS) + truth, rng.integers(5, size=ROWS).astype(float), np.zeros(ROWS)):
        assert METRICS["auc"](truth, scores[:, None]) == pytest.approx(sk.roc_auc_score(truth, scores))


def test_log_loss(rng):
    truth = rng.integers(3, size=ROWS)
    p = rng.dirichlet(np.ones(3), size=ROWS)
    assert METRICS["log_loss"](truth, p) == pytest.approx(sk.log_loss(truth, p, labels=[0, 1, 2]), rel=1e-5)


def test_log_loss_of_a_certain_and_wrong_prediction_is_finite():
    loss = METRICS["log_loss"](np.array([0]), np.array([[0.0, 1.0]]))
    assert loss == pytest.approx(-np.log(metrics.PROBABILITY_FLOOR), rel=1e-3)


def test_map_at_3(rng):
    truth = rng.integers(6, size=ROWS)
    guesses = np.stack([rng.permutation(6)[:3] for _ in range(ROWS)])
    places = [list(row).index(label) + 1 if label in row else None for row, label in zip(guesses, truth, strict=True)]
    expected = np.mean([0.0 if place is None else 1.0 / place for place in places])
    assert METRICS["map_at_3"](truth, guesses) == pytest.approx(expected)


def test_errors_of_numbers(rng):
    truth, guess = rng.lognormal(2, 1, size=(2, ROWS))
    column = guess[:, None]
    assert METRICS["mae"](truth, column) == pytest.approx(sk.mean_absolute_error(truth, guess))
    assert METRICS["rmse"](truth, column) == pytest.approx(sk.root_mean_squared_error(truth, guess))
    assert METRICS["rmsle"](truth, column) == pytest.approx(sk.root_mean_squared_log_error(truth, guess))
    assert METRICS["pcc"](truth, column) == pytest.approx(np.corrcoef(truth, guess)[0, 1])


def test_rmsle_takes_negative_predictions_as_zero():
    assert METRICS["rmsle"](np.array([1.0]), np.array([[-5.0]])) == pytest.approx(np.log(2.0))


def test_mcrmse(rng):
    truth, guess = rng.normal(size=(2, ROWS, 3))
    expected = np.mean([sk.root_mean_squared_error(truth[:, i], guess[:, i]) for i in range(3)])
    assert METRICS["mcrmse"](truth, guess) == pytest.approx(expected)


def test_constant_predictions_correlate_with_nothing(rng):
    assert METRICS["pcc"](rng.normal(size=ROWS), np.full((ROWS, 1), 0.1)) == 0.0
    assert METRICS["qwk"](rng.integers(3, size=ROWS).astype(float), np.ones((ROWS, 1))) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_truth_scores_best(name, rng):
    metric = METRICS[name]
    truth = rng.integers(2, size=ROWS) if metric.classification or name == "qwk" else rng.lognormal(size=ROWS)
    truth = np.stack([truth, truth], axis=1) if name == "mcrmse" else truth
    best = {
        "log_loss": np.eye(2)[truth.astype(int) % 2] if truth.ndim == 1 else truth,
        "map_at_3": np.stack([truth, 1 - truth, truth + 5], axis=1) if truth.ndim == 1 else truth,
    }.get(name, truth.reshape(ROWS, -1))
    worse = np.roll(best, 1, axis=0)
    good, bad = metric(truth, best), metric(truth, worse)
    assert (good > bad) == metric.higher_is_better
    assert good == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=1e-5)


def test_columns_of_submissions():
    assert metrics.columns(METRICS["accuracy"], 3, 1) == ("label",)
    assert metrics.columns(METRICS["log_loss"], 3, 1) == ("p_0", "p_1", "p_2")
    assert metrics.columns(METRICS["map_at_3"], 9, 1) == ("top_1", "top_2", "top_3")
    assert metrics.columns(METRICS["mcrmse"], 0, 2) == ("value_0", "value_1")


def test_an_unknown_metric_names_the_known():
    with pytest.raises(ValueError, match=r"'rmsee'.*rmse"):
        metrics.get("rmsee")
