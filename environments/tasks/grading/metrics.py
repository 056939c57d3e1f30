"""Metrics by name, with direction and form of submission, shared by graders and tasks.

They use NumPy alone, so that a grader does not need the scripts' environment. Predictions are `[rows, columns]`, one
column for most metrics; truths are `[rows]` or `[rows, outputs]`. The tests compare each metric with scikit-learn.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import numpy as np

PROBABILITY_FLOOR = 1e-6
"""Minimum probability in log loss: a certain but wrong prediction costs 13.8, so one row cannot decide the score."""
COMPETITION_FLOOR = 1e-15
"""Kaggle's minimum probability: such a row costs 34.5."""


class Form(enum.StrEnum):
    """Content of a submission's columns, besides `id`."""

    LABEL = "label"
    """`label`: the class, an integer."""
    SCORE = "score"
    """`score`: larger for class 1 of two."""
    PROBABILITIES = "probabilities"
    """`p_0` ... : one probability per class."""
    RANKING = "ranking"
    """`top_1` ... : classes, likeliest first."""
    NUMBER = "number"
    """`value`: a number."""
    ORDINAL = "ordinal"
    """`value`: an integer grade."""
    NUMBERS = "numbers"
    """`value_0` ... : one number per output."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric. `function(truth, prediction)` maps `[rows]` or `[rows, outputs]` and `[rows, columns]` to a float."""

    name: str
    form: Form
    higher_is_better: bool
    function: Callable[[np.ndarray, np.ndarray], float]

    @property
    def classification(self) -> bool:
        return self.form in (Form.LABEL, Form.SCORE, Form.PROBABILITIES, Form.RANKING)

    def __call__(self, truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(self.function(np.asarray(truth), np.asarray(prediction)))


def accuracy(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the share of rows whose class is right."""
    return float(np.mean(truth == prediction[:, 0]))


def macro_f1(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean F1 of all classes in truth or prediction: rare classes count as much as common ones."""
    guess = prediction[:, 0]
    scores = []
    for label in np.union1d(truth, guess):
        hits = np.sum((truth == label) & (guess == label))
        scores.append(2.0 * hits / (np.sum(truth == label) + np.sum(guess == label)))
    return float(np.mean(scores))


def auc(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the area under the ROC curve, as the Mann-Whitney statistic; ties count half."""
    scores = prediction[:, 0]
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - 0.5 * (counts - 1))[inverse]
    positives = int(np.sum(truth == 1))
    negatives = len(truth) - positives
    return float((np.sum(ranks[truth == 1]) - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(truth: np.ndarray, prediction: np.ndarray, floor: float = PROBABILITY_FLOOR) -> float:
    """Return the mean negative log-likelihood; probabilities are clipped at `floor` and normalised."""
    clipped = np.clip(prediction, floor, 1.0)
    clipped = clipped / clipped.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log(clipped[np.arange(len(truth)), truth.astype(int)])))


def map_at_k(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean average precision at k with one right class per row: its reciprocal rank, 0 if not listed."""
    hits = prediction == truth[:, None]
    return float(np.mean(np.where(hits.any(axis=1), 1.0 / (np.argmax(hits, axis=1) + 1.0), 0.0)))


def mae(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean absolute error."""
    return float(np.mean(np.abs(truth - prediction[:, 0])))


def rmse(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the root of the mean squared error."""
    return float(np.sqrt(np.mean((truth - prediction[:, 0]) ** 2)))


def rmsle(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the RMSE of log(1 + y); a negative prediction counts as 0."""
    return float(np.sqrt(np.mean((np.log1p(truth) - np.log1p(np.maximum(prediction[:, 0], 0.0))) ** 2)))


def qwk(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return Cohen's kappa with quadratic weights; 0 for constant predictions. Unknown grades count as disagreement.

    With n rows, kappa = 1 - sum (y - p)^2 / ((1 / n) * sum_i sum_j (y_i - p_j)^2).
    """
    guess = prediction[:, 0].astype(float)
    truth = truth.astype(float)
    expected = np.mean(truth**2) + np.mean(guess**2) - 2.0 * np.mean(truth) * np.mean(guess)
    return float(1.0 - np.mean((truth - guess) ** 2) / expected) if expected > 0 else 0.0


def pcc(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return Pearson's correlation; 0 if the prediction is constant."""
    guess = prediction[:, 0] - np.mean(prediction[:, 0])
    centred = truth - np.mean(truth)
    norm = np.sqrt(np.sum(guess**2) * np.sum(centred**2))
    return float(np.sum(guess * centred) / norm) if norm > 1e-12 * len(truth) else 0.0


def mcrmse(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the RMSE of each output, averaged."""
    return float(np.mean(np.sqrt(np.mean((truth - prediction) ** 2, axis=0))))


def column_mean(
    function: Callable[[np.ndarray, np.ndarray], float],
    truth: np.ndarray,  # [rows, columns]
    prediction: np.ndarray,  # [rows, columns]
) -> float:
    """Average a single-output metric over the columns."""
    return float(np.mean([function(truth[:, place], prediction[:, [place]]) for place in range(truth.shape[1])]))


def binary_log_loss(truth: np.ndarray, prediction: np.ndarray, floor: float = COMPETITION_FLOOR) -> float:
    """Return the mean negative log-likelihood of 0 and 1, for `[rows, 1]` probabilities of 1, clipped at `floor`."""
    p = np.clip(prediction[:, 0].astype(float), floor, 1 - floor)
    return float(-np.mean(np.where(truth == 1, np.log(p), np.log1p(-p))))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", Form.LABEL, True, accuracy),
        Metric("macro_f1", Form.LABEL, True, macro_f1),
        Metric("auc", Form.SCORE, True, auc),
        Metric("log_loss", Form.PROBABILITIES, False, log_loss),
        Metric("map_at_3", Form.RANKING, True, map_at_k),
        Metric("mae", Form.NUMBER, False, mae),
        Metric("rmse", Form.NUMBER, False, rmse),
        Metric("rmsle", Form.NUMBER, False, rmsle),
        Metric("qwk", Form.ORDINAL, True, qwk),
        Metric("pcc", Form.NUMBER, True, pcc),
        Metric("mcrmse", Form.NUMBERS, False, mcrmse),
    )
}


def get(name: str) -> Metric:
    """Return the metric called `name`.

    Raises:
      ValueError: there is none.
    """
    if name not in METRICS:
        raise ValueError(f"metric is {name!r}; choose one of {', '.join(sorted(METRICS))}")
    return METRICS[name]


def columns(metric: Metric, classes: int, outputs: int) -> tuple[str, ...]:
    """Return a submission's columns for `metric`, after `id`, for so many `classes` or regression `outputs`."""
    match metric.form:
        case Form.LABEL | Form.SCORE:
            return (metric.form.value,)
        case Form.PROBABILITIES:
            return tuple(f"p_{label}" for label in range(classes))
        case Form.RANKING:
            return tuple(f"top_{place}" for place in range(1, int(metric.name.rpartition("_")[2]) + 1))
        case Form.NUMBER | Form.ORDINAL:
            return ("value",)
        case Form.NUMBERS:
            return tuple(f"value_{output}" for output in range(outputs))
