"""The library of ideas: edits of one cell that a practitioner might try, good and bad, for tasks with our cells.

The scripted expert draws from it without knowing which ideas help. Ideas are worded alike across kinds of data, and
nearly every idea runs on every task that it suits. Whether it helps depends on facts shown in the prompt.
"""

from __future__ import annotations

import dataclasses
import functools

from environments.actions.edits import read_cells
from environments.tasks.generated.scripts import CELLS, Script
from environments.tasks.grading import metrics
from environments.tasks.grading.metrics import Form
from environments.tasks.task import TaskSpec

KINDS = ("tabular", "image", "text", "time_series", "graph")
_NARROW = ("tabular", "time_series", "graph")
"""Kinds with few columns, whose number may be multiplied."""


@dataclasses.dataclass(frozen=True)
class Idea:
    """One candidate edit."""

    text: str
    """Description of the edit, in at most eight words."""
    cell: str
    code: str
    """New body of `cell`."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of data that the idea suits."""
    classification: bool | None = None
    """Whether the idea is only for classification (True) or only for regression (False); None: for both."""
    forms: tuple[Form, ...] = tuple(Form)
    """Forms of submission that the idea can change."""
    trait: str = ""
    """Words that the traits line must contain."""

    def suits(self, spec: TaskSpec) -> bool:
        """Check whether the idea makes sense for a task, judging by its spec."""
        if spec.kind not in self.kinds or self.trait not in spec.traits:
            return False
        if spec.metric not in metrics.METRICS:  # A task's own metric: the content of its submission is unknown.
            return self.classification is None and self.forms == tuple(Form)
        metric = metrics.get(spec.metric)
        return self.classification in (None, metric.classification) and metric.form in self.forms


def ideas_for(spec: TaskSpec, script: str) -> tuple[Idea, ...]:
    """Return ideas that would change a cell of `script`: the task's own, and those of the library that suit it.

    The library's ideas build on the variables of our cells, so a script without all of these cells gets none of them.
    """
    cells = read_cells(script)
    own = [Idea(idea.text, idea.cell, idea.code) for idea in spec.ideas]
    ours = [idea for idea in library() if idea.suits(spec)] if cells.keys() >= set(CELLS) else []
    return tuple(idea for idea in (*own, *ours) if cells.get(idea.cell, idea.code) != idea.code)


def candidates_for(spec: TaskSpec, script: str) -> tuple[Idea, ...]:
    """Return at least 100 ideas for a task with our cells, from which to choose diverse ones.

    These are `ideas_for` and finer variations of its models and features. No two make the same edit.
    """
    cells = read_cells(script)
    wide = [idea for idea in variations() if idea.suits(spec)] if cells.keys() >= set(CELLS) else []
    by_edit = {(idea.cell, idea.code): idea for idea in reversed((*ideas_for(spec, script), *wide))}
    return tuple(idea for idea in reversed(by_edit.values()) if cells.get(idea.cell, idea.code) != idea.code)


@functools.cache
def variations() -> tuple[Idea, ...]:
    """Return ideas between those of the library: the same models and features with other settings."""
    models = {
        **{f"{k} nearest neighbours": f"KNeighbors{{}}(n_neighbors={k})" for k in (2, 3, 7, 10, 20)},
        **{f"{k} weighted nearest neighbours": f'KNeighbors{{}}({k}, weights="distance")' for k in (3, 5, 20)},
        "10 nearest neighbours by absolute distance": "KNeighbors{}(10, p=1)",
        **{f"decision tree of depth {depth}": f"DecisionTree{{}}(max_depth={depth})" for depth in (2, 4, 5, 8)},
        **{f"decision tree with leaves of {n}": f"DecisionTree{{}}(min_samples_leaf={n})" for n in (3, 5, 20)},
        **{f"random forest of depth {d}": f"RandomForest{{}}(n_estimators=30, max_depth={d})" for d in (2, 5, 8)},
        **{f"random forest with leaves of {n}": f"RandomForest{{}}(30, min_samples_leaf={n})" for n in (2, 10)},
        "random forest on half of the columns": "RandomForest{}(n_estimators=30, max_features=0.5)",
        "random forest on all columns": "RandomForest{}(n_estimators=30, max_features=None)",
        "larger random forest": "RandomForest{}(n_estimators=60)",
        **{f"extra trees of depth {d}": f"ExtraTrees{{}}(n_estimators=30, max_depth={d})" for d in (2, 6, 10)},
        **{f"extra trees with leaves of {n}": f"ExtraTrees{{}}(30, min_samples_leaf={n})" for n in (2, 10)},
        "extra trees on half of the columns": "ExtraTrees{}(n_estimators=30, max_features=0.5)",
        "few bagged trees": "Bagging{}(n_estimators=8)",
        "trees bagged on half of the rows": "Bagging{}(n_estimators=20, max_samples=0.5)",
        "trees bagged on half of the columns": "Bagging{}(n_estimators=20, max_features=0.5)",
    }
    features = {
        **{f"keep components of {p}% variance": f"StandardScaler(), PCA({p / 100})" for p in (60, 80, 95)},
        **{f"whiten components of {p}% variance": f"PCA({p / 100}, whiten=True)" for p in (80, 99)},
        **{f"bin every column in {n}": f'KBinsDiscretizer({n}, encode="onehot-dense")' for n in (4, 6)},
        "map through a small radial kernel": "StandardScaler(), Nystroem(n_components=20)",
        "map through a narrow radial kernel": "StandardScaler(), Nystroem(gamma=0.3, n_components=50)",
        "standardise after robust scaling": "RobustScaler(), StandardScaler()",
        "normalise rows by absolute values": 'Normalizer("l1")',
    }
    return (
        *(
            _model(text, model.format(suffix), KINDS, suffix == "Classifier")
            for text, model in models.items()
            for suffix in ("Classifier", "Regressor")
        ),
        *(_steps(text, steps, KINDS) for text, steps in features.items()),
    )


@functools.cache
def library() -> tuple[Idea, ...]:
    """Return all ideas."""
    return (*_data(), *_features(), *_targets(), *_models(), *_fits(), *_predictions())


def _data() -> list[Idea]:
    tabular = {
        "fill missing cells with the mean": 'fill="mean"',
        "fill missing cells with the median": 'fill="median"',
        "flag missing cells": 'fill="flag"',
        "fill missing cells with -1": "fill=-1",
    }
    image = {
        "shrink the images to 4 by 4": "size=4",
        "shrink the images to 3 by 3": "size=3",
        "shrink the images to 2 by 2": "size=2",
        "add edges to the pixels": "edges=True",
        "add blurred pixels": "blur=True",
        "add edges and blurred pixels": "edges=True, blur=True",
        "small images with edges": "size=4, edges=True",
        "small images with blur": "size=3, blur=True",
    }
    text = {
        f"count the {words} commonest words": f"words={words}" for words in (20, 50, 100, 300, 600)
    } | {
        "weight words by tf-idf": "words=300, tfidf=True",
        "tf-idf of few words": "words=50, tfidf=True",
        "tf-idf of many words": "words=600, tfidf=True",
        "count pairs of words": "words=300, pairs=True",
        "tf-idf of pairs of words": "words=600, pairs=True, tfidf=True",
        "count pieces of 3 letters": "words=300, letters=3",
        "count pieces of 4 letters": "words=600, letters=4",
        "tf-idf of pieces of 3 letters": "words=300, letters=3, tfidf=True",
        "tf-idf of pieces of 4 letters": "words=600, letters=4, tfidf=True",
    }  # fmt: skip
    series = {
        f"use {lags} lags": f"lags={lags}" for lags in (1, 2, 4, 8, 12, 24)
    } | {
        "use 2 lags and the season": "lags=2, season=True",
        "use 4 lags and the season": "lags=4, season=True",
        "use 12 lags and the season": "lags=12, season=True",
        "use 4 lags and the trend": "lags=4, trend=True",
        "use 12 lags and the trend": "lags=12, trend=True",
        "use lags, season and trend": "lags=4, season=True, trend=True",
        "use many lags, season and trend": "lags=24, season=True, trend=True",
    }  # fmt: skip
    graph = {
        "add the mean of the neighbours": "hops=1",
        "add means of two hops": "hops=2",
        "add means of three hops": "hops=3",
        "add the degree": "degree=True",
        "add 3 spectral coordinates": "spectral=3",
        "add 8 spectral coordinates": "spectral=8",
        "add the votes of the neighbours": "votes=True",
        "add neighbours and votes": "hops=1, votes=True",
        "add two hops and the degree": "hops=2, degree=True",
        "add spectral coordinates and votes": "spectral=8, votes=True",
        "add two hops, degree and votes": "hops=2, degree=True, votes=True",
    }
    ideas = [
        _load(description, options, (kind,), "missing" if kind == "tabular" else "")
        for kind, table in zip(KINDS, (tabular, image, text, series, graph), strict=True)
        for description, options in table.items()
    ]
    ideas += [_load("load the data as they are", "", ("tabular", "image", "graph", "text"))]
    ideas += [_load(f"train on {rows} rows only", f"rows={rows}", ("tabular",)) for rows in (50, 100)]
    clip = Script("").cells()["data"] + "\ny = y.clip(*np.quantile(y, [0.05, 0.95]))"
    ideas.append(Idea("clip extreme targets", "data", f"import numpy as np\n{clip}", ("tabular",), False))
    return ideas


def _load(text: str, options: str, kinds: tuple[str, ...], trait: str = "") -> Idea:
    return Idea(text, "data", Script("", load=options).cells()["data"], kinds, trait=trait)


def _features() -> list[Idea]:
    anywhere = {
        "use the columns as they are": "",
        "standardise the columns": "StandardScaler()",
        "scale the columns to 0 and 1": "MinMaxScaler()",
        "scale robustly": "RobustScaler()",
        "normalise every row": "Normalizer()",
        "standardise, then normalise every row": "StandardScaler(), Normalizer()",
        "keep 2 components": "PCA(2)",
        "keep components of 90% variance": "StandardScaler(), PCA(0.9)",
        "keep components of 99% variance": "StandardScaler(), PCA(0.99)",
        "whiten the columns": "StandardScaler(), PCA(0.95, whiten=True)",
        "bin every column in 3": 'KBinsDiscretizer(3, encode="onehot-dense")',
        "map through a radial kernel": "StandardScaler(), Nystroem(n_components=50)",
    }
    narrow = {
        "make the columns normal": "PowerTransformer()",
        "replace values by their ranks": "QuantileTransformer(n_quantiles=30)",
        "make the columns normal by ranks": 'QuantileTransformer(n_quantiles=30, output_distribution="normal")',
        "add squares and products": "StandardScaler(), PolynomialFeatures(2)",
        "add products of columns": "StandardScaler(), PolynomialFeatures(2, interaction_only=True)",
        "expand columns in splines": "SplineTransformer(4)",
        "bin every column in 8": 'KBinsDiscretizer(8, encode="onehot-dense")',
        "bin every column in 2": 'KBinsDiscretizer(2, encode="onehot-dense")',
    }
    selections = {
        "select the best tenth of the columns": ("", 10),
        "select the best quarter of the columns": ("", 25),
        "select the best half of the columns": ("", 50),
        "standardise and select the best quarter": ("StandardScaler(), ", 25),
        "standardise and select the best half": ("StandardScaler(), ", 50),
    }
    ideas = [_steps(text, steps, KINDS) for text, steps in anywhere.items()]
    ideas += [_steps(text, steps, _NARROW) for text, steps in narrow.items()]
    for text, (before, percentile) in selections.items():
        for classification, test in ((True, "f_classif"), (False, "f_regression")):
            steps = f"{before}SelectPercentile({test}, percentile={percentile})"
            ideas.append(dataclasses.replace(_steps(text, steps, KINDS), classification=classification))
    return ideas


def _steps(text: str, steps: str, kinds: tuple[str, ...]) -> Idea:
    return Idea(text, "features", Script("", steps=steps).cells()["features"], kinds)


def _targets() -> list[Idea]:
    regression = {
        "learn the logarithm of the target": '"log"',
        "learn the root of the target": '"sqrt"',
        "learn the rank of the target": '"rank"',
        "learn the change from the first column": '"change"',
    }
    code = {text: Script("", target=target).cells()["target"] for text, target in regression.items()}
    return [
        Idea("leave the target as it is", "target", Script("").cells()["target"]),
        Idea("balance the classes", "target", Script("", target='"balanced"').cells()["target"], classification=True),
        *(Idea(text, "target", body, classification=False) for text, body in code.items()),
    ]


def _models() -> list[Idea]:
    both = {
        "nearest neighbour": "KNeighbors{}(n_neighbors=1)",
        "5 nearest neighbours": "KNeighbors{}()",
        "15 nearest neighbours": "KNeighbors{}(n_neighbors=15)",
        "30 nearest neighbours": "KNeighbors{}(n_neighbors=30)",
        "10 nearest neighbours weighted by distance": 'KNeighbors{}(10, weights="distance")',
        "decision stump": "DecisionTree{}(max_depth=1)",
        "decision tree of depth 3": "DecisionTree{}(max_depth=3)",
        "decision tree of depth 6": "DecisionTree{}(max_depth=6)",
        "full decision tree": "DecisionTree{}()",
        "decision tree with large leaves": "DecisionTree{}(min_samples_leaf=10)",
        "small random forest": "RandomForest{}(n_estimators=10)",
        "random forest": "RandomForest{}(n_estimators=30)",
        "shallow random forest": "RandomForest{}(n_estimators=30, max_depth=3)",
        "random forest with large leaves": "RandomForest{}(n_estimators=30, min_samples_leaf=5)",
        "extra trees": "ExtraTrees{}(n_estimators=30)",
        "many extra trees": "ExtraTrees{}(n_estimators=60)",
        "extra trees with larger leaves": "ExtraTrees{}(n_estimators=30, min_samples_leaf=3)",
        "shallow extra trees": "ExtraTrees{}(n_estimators=30, max_depth=4)",
        "bagged trees": "Bagging{}(n_estimators=20)",
        "always the same guess": "Dummy{}()",
    }
    boosting = {
        "gradient boosting": "GradientBoosting{}(n_estimators=50)",
        "gradient boosting of stumps": "GradientBoosting{}(n_estimators=50, max_depth=1)",
        "fast gradient boosting": "GradientBoosting{}(n_estimators=30, learning_rate=0.3)",
        "slow gradient boosting": "GradientBoosting{}(n_estimators=30, learning_rate=0.02)",
        "histogram gradient boosting": "HistGradientBoosting{}(max_iter=30)",
        "boosted stumps": "AdaBoost{}(n_estimators=30)",
    }
    classification = {
        **{f"logistic regression with C {c}": f"LogisticRegression(C={c})" for c in (0.001, 0.01, 0.1, 1, 10, 100)},
        "balanced logistic regression": 'LogisticRegression(class_weight="balanced")',
        "ridge classifier": "RidgeClassifier()",
        "ridge classifier with alpha 100": "RidgeClassifier(alpha=100)",
        "linear discriminant analysis": "LinearDiscriminantAnalysis()",
        "shrunken linear discriminant analysis": 'LinearDiscriminantAnalysis("lsqr", shrinkage="auto")',
        "naive Bayes": "GaussianNB()",
        "smoothed naive Bayes": "GaussianNB(var_smoothing=0.1)",
        "Bernoulli naive Bayes": "BernoulliNB()",
        "nearest centroid": "NearestCentroid()",
        **{f"support vectors with C {c}": f"SVC(C={c})" for c in (0.1, 1, 10, 100)},
        "balanced support vectors": 'SVC(class_weight="balanced")',
        "balanced random forest": 'RandomForestClassifier(30, class_weight="balanced")',
    }
    regression = {
        "linear regression": "LinearRegression()",
        **{f"ridge with alpha {alpha}": f"Ridge(alpha={alpha})" for alpha in (0.1, 1, 10, 100, 1000)},
        **{f"lasso with alpha {alpha}": f"Lasso(alpha={alpha})" for alpha in (0.1, 1, 10)},
        "elastic net": "ElasticNet(alpha=0.1)",
        "Bayesian ridge": "BayesianRidge()",
        "Huber regression": "HuberRegressor()",
        **{f"support vectors with C {c}": f"SVR(C={c})" for c in (1, 10, 100, 1000)},
        "support vectors with small gamma": "SVR(C=100, gamma=0.01)",
        "kernel ridge": 'KernelRidge(alpha=0.1, kernel="rbf")',
        "boosted trees for absolute errors": 'GradientBoostingRegressor(loss="absolute_error", n_estimators=40)',
    }
    ideas = [
        _model(text, model.format(suffix), kinds, suffix == "Classifier")
        for table, kinds in ((both, KINDS), (boosting, _NARROW))
        for text, model in table.items()
        for suffix in ("Classifier", "Regressor")
    ]
    ideas += [_model(text, model, KINDS, True) for text, model in classification.items()]
    ideas += [_model(text, model, KINDS, False) for text, model in regression.items()]
    return ideas


def _model(text: str, model: str, kinds: tuple[str, ...], classification: bool) -> Idea:
    return Idea(text, "model", Script(model).cells()["model"], kinds, classification)


def _fits() -> list[Idea]:
    plain = Script("").cells()["fit"]
    bagging = "model = Bagging{}(build(steps, model, target), 5)"
    return [
        Idea("fit one model", "fit", plain),
        Idea("fit half of the rows", "fit", plain.replace("fit(x, y)", "fit(x[::2], y[::2])")),
        *(
            Idea("average 5 bagged models", "fit", Script("", fit=bagging.format(suffix)).cells()["fit"], KINDS, kind)
            for suffix, kind in (("Classifier", True), ("Regressor", False))
        ),
    ]


def _predictions() -> list[Idea]:
    # Shrinking changes neither the order of scores nor the likeliest class.
    forms = (Form.PROBABILITIES, Form.NUMBER, Form.NUMBERS, Form.ORDINAL)
    shrunk = {f"move predictions {percent}% to the mean": f"shrink={percent / 100:g}" for percent in (10, 30, 50)}
    ideas = [("save the predictions as they are", ""), *shrunk.items()]
    return [Idea(text, "predict", Script("", save=options).cells()["predict"], forms=forms) for text, options in ideas]
