"""Read-only helper beside train.py: building, checking and saving a model, the same for every task.

x, y, z = load()                       training inputs, training targets, inputs to predict
model = build(steps, model, target)    one estimator: transformers, then the model, with the target treated
check(model, x, y)                     prints its score on rows held out of the training data
save(model, z)                         writes submission.csv
"""

import json
import os
from pathlib import Path

import numpy as np
from loading import inputs
from sklearn import metrics
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import train_test_split
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

__all__ = ["build", "check", "load", "save"]

ABOUT = json.loads(Path("data/about.json").read_text())
METRIC, CLASSES = ABOUT["metric"], ABOUT["classes"]
np.random.seed(int(os.environ.get("MLAGENT_SEED", "0")) % 2**32)


class Shifted(RegressorMixin, BaseEstimator):
    """Learns `transform(y - smallest y)`: for targets with a long tail."""

    def __init__(self, model, power):
        self.model, self.power = model, power

    def fit(self, x, y):
        self.low_, self.high_ = y.min(axis=0), y.max(axis=0)
        y = y - self.low_
        self.model_ = clone(self.model).fit(x, np.log1p(y) if self.power == 0 else y**self.power)
        return self

    def predict(self, x):
        y = self.model_.predict(x)
        y = np.expm1(np.minimum(y, 50.0)) if self.power == 0 else np.maximum(y, 0.0) ** (1 / self.power)
        return np.minimum(self.low_ + y, self.high_ + (self.high_ - self.low_))


class Change(RegressorMixin, BaseEstimator):
    """Learns the difference between the target and the first column of x."""

    def __init__(self, model):
        self.model = model

    def fit(self, x, y):
        self.model_ = clone(self.model).fit(x, y - self.first(x, y.ndim))
        return self

    def predict(self, x):
        y = self.model_.predict(x)
        return y + self.first(x, y.ndim)

    @staticmethod
    def first(x, dimensions):
        return x[:, 0] if dimensions == 1 else x[:, :1]


class Balanced(ClassifierMixin, BaseEstimator):
    """Repeats rows of the rarer classes until all classes are equally common."""

    def __init__(self, model):
        self.model = model

    def fit(self, x, y):
        size = np.bincount(y).max()
        rows = np.concatenate([np.resize(np.flatnonzero(y == label), size) for label in np.unique(y)])
        self.model_ = clone(self.model).fit(x[rows], y[rows])
        self.classes_ = self.model_.classes_
        return self

    def predict(self, x):
        return self.model_.predict(x)

    def __getattr__(self, name):
        if name in ("predict_proba", "decision_function") and "model_" in self.__dict__:
            return getattr(self.model_, name)
        raise AttributeError(name)


def load(rows=None, **options):
    """Training inputs, training targets, inputs to predict. `rows`: only so many training rows; `options`: those of
    `inputs` in loading.py, which depend on the kind of the data."""
    x, z = inputs(**options)
    y = np.loadtxt("data/target.csv", delimiter=",", skiprows=1)
    return x[:rows], (y.astype(int) if CLASSES else y)[:rows], z


def build(steps, model, target=None):
    """One estimator. `target`: None, "log", "sqrt", "rank", "change" (regression) or "balanced" (classification)."""
    model = make_pipeline(*steps, model)
    if ABOUT["outputs"] > 1:
        # In a pipeline, which takes no sample weights: bagging then draws rows instead.
        model = make_pipeline(MultiOutputRegressor(model))
    if target is None:
        return model
    if target == "balanced" and CLASSES:
        return Balanced(model)
    if target in ("log", "sqrt") and not CLASSES:
        return Shifted(model, {"log": 0, "sqrt": 0.5}[target])
    if target == "rank" and not CLASSES:
        return TransformedTargetRegressor(
            model, transformer=QuantileTransformer(n_quantiles=50, output_distribution="normal")
        )
    if target == "change" and not CLASSES:
        return Change(model)
    raise ValueError(f"target {target!r} does not fit a {'classification' if CLASSES else 'regression'}")


def probabilities(model, x):
    """Class probabilities, of models that have none from their decision values. [rows, classes]"""
    if hasattr(model, "predict_proba"):
        found = model.predict_proba(x)
    elif hasattr(model, "decision_function"):
        values = model.decision_function(x)
        values = np.column_stack([-values, values]) if values.ndim == 1 else values
        values = np.exp(values - values.max(axis=1, keepdims=True))
        found = values / values.sum(axis=1, keepdims=True)
    else:
        found = np.eye(CLASSES)[model.predict(x)][:, model.classes_]
    full = np.zeros((len(found), CLASSES))
    full[:, model.classes_] = found
    return full


def predictions(model, x, shrink=0.0):
    """The columns of a submission. `shrink` moves them so far (0 to 1) towards their mean. [rows, columns]"""
    if METRIC in ("accuracy", "macro_f1"):
        return model.predict(x)[:, None]
    if CLASSES:
        p = probabilities(model, x)
        p = (1 - shrink) * p + shrink * p.mean(axis=0)
        if METRIC == "auc":
            return p[:, 1:]
        if METRIC.startswith("map_at_"):
            return np.argsort(-p, axis=1, kind="stable")[:, : int(METRIC[7:])]
        return p
    y = model.predict(x)
    y = y.reshape(len(y), -1)
    y = (1 - shrink) * y + shrink * y.mean(axis=0)
    if METRIC == "qwk":
        return np.clip(np.rint(y), 0, ABOUT["grades"] - 1).astype(int)
    return y


def score(y, p):
    """The task's metric of predictions `p` for truths `y`."""
    if METRIC == "accuracy":
        return np.mean(y == p[:, 0])
    if METRIC == "macro_f1":
        return metrics.f1_score(y, p[:, 0], average="macro")
    if METRIC == "auc":
        return metrics.roc_auc_score(y, p[:, 0])
    if METRIC == "log_loss":
        return -np.mean(np.log(np.clip(p, 1e-6, 1)[np.arange(len(y)), y]))
    if METRIC.startswith("map_at_"):
        hits = p == y[:, None]
        return np.mean(hits.any(axis=1) / (hits.argmax(axis=1) + 1))
    if METRIC == "qwk":
        return metrics.cohen_kappa_score(y.astype(int), p[:, 0], weights="quadratic")
    if METRIC == "pcc":
        return np.corrcoef(y, p[:, 0])[0, 1]
    if METRIC == "mae":
        return np.mean(np.abs(y - p[:, 0]))
    if METRIC == "rmsle":
        y, p = np.log1p(y), np.log1p(np.maximum(p, 0))
    return np.mean(np.sqrt(np.mean((y.reshape(len(y), -1) - p) ** 2, axis=0)))


def check(model, x, y):
    """Print the score on a quarter of the training rows after training on the others, and the score on the latter."""
    fit, valid = train_test_split(np.arange(len(y)), test_size=0.25, shuffle=not ABOUT["ordered"], random_state=0)
    fitted = clone(model).fit(x[fit], y[fit])
    scores = [score(y[rows], predictions(fitted, x[rows])) for rows in (valid, fit)]
    print("validation {} {:.3g} train {:.3g}".format(METRIC, *scores))


def save(model, z, shrink=0.0):
    """Write the predictions for `z` to submission.csv."""
    p = predictions(model, z, shrink)
    lines = ["id," + ",".join(ABOUT["columns"])]
    lines += [f"{row}," + ",".join(f"{value:.6g}" for value in values) for row, values in enumerate(p)]
    Path("submission.csv").write_text("\n".join(lines) + "\n")
