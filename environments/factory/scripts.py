"""Starting script, reference and ideas of a table's task, chosen by cross-validation on its public rows.

The starting script is weak on purpose: it omits a part of the data, such as texts, and uses a simple model. The
reference is the best of a few good scripts. Hidden rows are not used for the choice. Scripts contain no text from the
data: they read names and roles of columns from about.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from environments.factory.choices import TARGET
from environments.tasks.generated.scripts import MODULE_OF, Script
from environments.tasks.grading import metrics
from environments.tasks.grading.metrics import Form
from environments.tasks.task import OwnIdea

FOLDS = 3
MOST_ROWS = 1500
"""Maximum number of public rows that are used to choose scripts."""


_FAILED = 1e300
"""Absolute value of the score of a script that fails."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Scripts of a task with their mean scores in cross-validation."""

    start: Script
    reference: Script
    start_score: float
    reference_score: float
    agrees: bool
    """Whether the reference is better in most folds and on average."""


def choose_scripts(train: pd.DataFrame, plan: Mapping[str, Any], name: str) -> Chosen:
    """Choose starting script and reference for public rows `train`, with the target in `y0`.

    Args:
      train: Public rows as texts, `[rows, columns]`.
      plan: `choices.Plan.to_dict()`.
      name: Name of the task, whose hash chooses among the weak starting scripts.
    """
    sample = train.iloc[:MOST_ROWS]
    metric = metrics.get(plan["metric"])
    target = pd.to_numeric(sample[TARGET]).to_numpy(float)
    classes = len(plan["classes"])
    classification = metric.classification
    target = target.astype(int) if classification else target
    kinds = set(plan["roles"].values())
    starts = _starts(plan["kind"], kinds, classification, name)
    references = _references(plan["kind"], kinds, classification, metric.name, len(sample))
    folds = np.random.default_rng(0).permutation(len(sample)) % FOLDS
    if plan["split"] == "time":
        folds = np.arange(len(sample)) * FOLDS // len(sample)
    ours = sample.reset_index(drop=True)
    scores = {script: _cross_validate(script, ours, target, folds, plan, classes, metric) for script in references}
    for start in starts:
        scores[start] = _cross_validate(start, ours, target, folds, plan, classes, metric)
        if max(map(abs, scores[start])) < _FAILED:  # With few rows, not every script runs.
            break
    sign = 1 if metric.higher_is_better else -1
    best = max(references, key=lambda script: sign * np.mean(scores[script]))
    gains = sign * (np.array(scores[best]) - np.array(scores[start]))
    agrees = bool(np.mean(gains) > 0 and np.sum(gains > 0) >= FOLDS - 1)
    return Chosen(start, best, float(np.mean(scores[start])), float(np.mean(scores[best])), agrees)


def _starts(kind: str, roles: set[str], classification: bool, name: str) -> list[Script]:
    """Return weak scripts; the hash of `name` decides which comes first."""
    suffix = "Classifier" if classification else "Regressor"
    models = [
        f"DecisionTree{suffix}(max_depth=1, random_state=0)",
        f"DecisionTree{suffix}(max_depth=2, random_state=0)",
        f"KNeighbors{suffix}(n_neighbors=30)",
        f"KNeighbors{suffix}(n_neighbors=1)",
        "GaussianNB()" if classification else "Ridge(alpha=10000)",
    ]
    options = _weak(kind, roles)
    place = hashlib.sha256(name.encode()).digest()[0] % len(models)
    return [Script(model, load=options) for model in (*models[place:], *models[:place])]


def _weak(kind: str, roles: set[str]) -> str:
    """Return arguments of `load` that omit a part of the data."""
    if kind == "image":
        return "size=3"
    if kind == "text":
        return "words=20"
    return 'words=0, categories="codes"' if "number" not in roles else "words=0"


def _references(kind: str, roles: set[str], classification: bool, metric: str, rows: int) -> list[Script]:
    suffix = "Classifier" if classification else "Regressor"
    if kind == "image":
        load = ""
    else:
        options = ['fill="median"'] * ("number" in roles) + ['categories="onehot"'] * ("category" in roles)
        options += ["dates=True"] * ("date" in roles)
        options += ["words=300, tfidf=True"] * ("text" in roles)
        load = ", ".join(options)
    linear = "LogisticRegression(C=1, max_iter=300)" if classification else "Ridge(alpha=3)"
    target = '"log"' if metric == "rmsle" else "None"
    found = [
        Script(f"RandomForest{suffix}(60, min_samples_leaf=2, random_state=0)", load=load, target=target),
        Script(linear, load=load, steps="StandardScaler()", target=target),
        Script(f"ExtraTrees{suffix}(60, min_samples_leaf=2, random_state=0)", load=load, target=target),
    ]
    if rows >= 200 and kind == "tabular":
        boosting = f"HistGradientBoosting{suffix}(max_iter=60, learning_rate=0.1, max_leaf_nodes=15, random_state=0)"
        found.append(Script(boosting, load=load, target=target))
    return found


def _cross_validate(
    script: Script,
    sample: pd.DataFrame,
    target: np.ndarray,
    folds: np.ndarray,
    plan: Mapping[str, Any],
    classes: int,
    metric: metrics.Metric,
) -> list[float]:
    """Return the score of a script on each fold; a fold that cannot be scored gets the worst score, `_FAILED`."""
    from environments.tasks.generated.starter import loading_table  # Imports scikit-learn, which takes seconds.

    options: dict[str, Any] = _literal(f"dict({script.load})")
    sign = 1 if metric.higher_is_better else -1
    worst = -sign * _FAILED
    scores = []
    for fold in range(FOLDS):
        fit, valid = folds != fold, folds == fold
        if plan["split"] == "time":
            fit = folds < fold if fold else folds == 2
        parts = [{name: sample[name][rows].tolist() for name in plan["roles"]} for rows in (fit, valid)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                if plan["kind"] == "image":
                    x, z = (np.array([[float(cell) for cell in part[name]] for name in part]).T for part in parts)
                else:
                    x, z = loading_table.encode(*parts, plan["roles"], **options)
                model = _estimator(script)
                y = np.log1p(target[fit] - target[fit].min()) if script.target == '"log"' else target[fit]
                guess = _predictions(model.fit(x, y), z, metric, classes)
                if script.target == '"log"':
                    guess = np.expm1(np.minimum(guess, 50)) + target[fit].min()
                scores.append(metric(target[valid], guess))
            except (ValueError, ZeroDivisionError, FloatingPointError):
                scores.append(worst)
    return [score if np.isfinite(score) else worst for score in scores]


def _estimator(script: Script) -> Any:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*_literal(f"[{script.steps}]"), _literal(script.model))


def _literal(code: str) -> Any:
    """Evaluate an expression from a script of this module."""
    names = {name: MODULE_OF[name] for name in re.findall(r"[A-Za-z_]\w*", code) if name in MODULE_OF}
    namespace: dict[str, Callable[..., Any]] = {
        name: getattr(importlib.import_module(module), name) for name, module in names.items()
    }
    return eval(code, {"dict": dict, **namespace})  # noqa: S307 - a constant of this module


def _predictions(model: Any, z: np.ndarray, metric: metrics.Metric, classes: int) -> np.ndarray:  # [rows, columns]
    if metric.form is Form.LABEL:
        return model.predict(z)[:, None]
    if metric.form in (Form.SCORE, Form.PROBABILITIES, Form.RANKING):
        full = np.zeros((len(z), classes))
        full[:, model.classes_] = model.predict_proba(z)
        if metric.form is Form.SCORE:
            return full[:, 1:]
        return np.argsort(-full, axis=1, kind="stable")[:, :3] if metric.form is Form.RANKING else full
    guess = model.predict(z)[:, None]
    return np.rint(guess) if metric.form is Form.ORDINAL else guess


def ideas(kind: str, roles: Sequence[str]) -> tuple[OwnIdea, ...]:
    """Return edits of the data cell that suit the columns, good and bad ones.

    The library of ideas has the edits of the other cells.

    Args:
      kind: Kind of the task.
      roles: Roles of the columns.
    """
    held = set(roles)
    options: dict[str, str] = {}
    if kind == "tabular":
        if "category" in held:
            options |= {
                "use categories as numbered codes": 'categories="codes"',
                "use categories one-hot": 'categories="onehot"',
                "use how often categories occur": 'categories="counts"',
                "one-hot categories, missing cells flagged": 'fill="flag", categories="onehot"',
                "one-hot categories, missing cells by the median": 'fill="median", categories="onehot"',
            }
        if "date" in held:
            options |= {
                "take dates apart": "dates=True",
                "take dates apart, one-hot categories": 'dates=True, categories="onehot"',
            }
        if "text" in held:
            options |= {
                "count the 100 commonest words": "words=100",
                "weight words by tf-idf, one-hot categories": 'words=300, tfidf=True, categories="onehot"',
                "use no words": "words=0",
            }
    elif kind == "text" and held - {"text"}:
        options = {
            "words and one-hot categories": 'words=200, categories="onehot"',
            "tf-idf of words and one-hot categories": 'words=300, tfidf=True, categories="onehot"',
        }
    return tuple(OwnIdea(text, "data", Script("", load=load).cells()["data"]) for text, load in options.items())
