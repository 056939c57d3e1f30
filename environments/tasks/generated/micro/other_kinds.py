"""Micro-tasks over time series, images, texts and graphs, from the processes that the embedded tasks use too."""

from __future__ import annotations

import numpy as np

from environments.tasks.generated.micro.design import HIDDEN_ROWS, Design, Family, pick, weaken
from environments.tasks.generated.processes.graphs import Communities
from environments.tasks.generated.processes.images import Figures, Patches
from environments.tasks.generated.processes.series import Series
from environments.tasks.generated.processes.texts import Essays, Topics
from environments.tasks.generated.scripts import Script

_TREES = (
    "DecisionTreeRegressor()",
    "DecisionTreeRegressor(max_depth=3)",
    "RandomForestRegressor(n_estimators=10)",
    "RandomForestRegressor(n_estimators=30, max_depth=3)",
)
_CLASSIFIERS = (
    "DecisionTreeClassifier()",
    "DecisionTreeClassifier(max_depth=3)",
    "KNeighborsClassifier()",
    "RandomForestClassifier(n_estimators=10)",
    "LogisticRegression(C=0.01)",
)


def _seasonal(rng: np.random.Generator) -> Design:
    period = pick(rng, (7, 12))
    series = Series(pick(rng, (200, 300)), HIDDEN_ROWS, horizon=pick(rng, (3, period)), period=period,
                    season=pick(rng, (0.7, 1.2)))  # fmt: skip
    model = pick(rng, (*_TREES, "LinearRegression()", "SVR()", "KNeighborsRegressor(n_neighbors=30)"))
    start = Script(model, load=pick(rng, ("lags=2", "lags=4")))
    reference = Script("Ridge(alpha=1)", load="lags=12, season=True", steps="StandardScaler()")
    return Design(pick(rng, ("mae", "rmse")), series.data, start, reference)


def _walk(rng: np.random.Generator) -> Design:
    series = Series(pick(rng, (200, 300)), HIDDEN_ROWS, horizon=pick(rng, (2, 4)), season=pick(rng, (0.3, 0.6)),
                    walk=0.08, trend=pick(rng, (-0.4, 0.4)), noise=0.15)  # fmt: skip
    start = Script(pick(rng, (*_TREES, "KNeighborsRegressor()", "SVR()")), load="lags=2")
    reference = Script("Ridge(alpha=1)", load="lags=12, season=True", steps="StandardScaler()", target='"change"')
    return Design(pick(rng, ("mae", "rmse")), series.data, start, reference)


def _amounts(rng: np.random.Generator) -> Design:
    period = pick(rng, (7, 12))
    series = Series(pick(rng, (200, 300)), HIDDEN_ROWS, horizon=pick(rng, (3, period)), period=period, season=0.8,
                    noise=0.3, amounts=True)  # fmt: skip
    start = Script(pick(rng, (*_TREES[:2], "LinearRegression()", "SVR()")), load="lags=2")
    reference = Script("Ridge(alpha=1)", load="lags=12, season=True", steps="PowerTransformer()", target='"log"')
    return Design(pick(rng, ("rmsle", "mae")), series.data, start, reference)


def _figures(rng: np.random.Generator) -> Design:
    figures = Figures(pick(rng, (200, 300)), HIDDEN_ROWS, classes=pick(rng, (2, 3)), noise=pick(rng, (3.5, 4.5)))
    metrics = ("accuracy", "auc") if figures.classes == 2 else ("accuracy",)
    start = weaken(
        rng, Script(pick(rng, (*_CLASSIFIERS[:2], *_CLASSIFIERS[3:]))), ({"load": "size=2"}, {"steps": "PCA(2)"}), 0.5
    )
    model = 'KNeighborsClassifier(10, weights="distance")'
    reference = Script(model, load="blur=True", steps="StandardScaler(), Normalizer()")
    return Design(pick(rng, metrics), figures.data, start, reference)


def _patches(rng: np.random.Generator) -> Design:
    patches = Patches(300, HIDDEN_ROWS, noise=pick(rng, (1.5, 3.0)))
    start = Script(pick(rng, (*_TREES, "KNeighborsRegressor(n_neighbors=1)", "SVR()", "LinearRegression()")))
    start = weaken(rng, start, ({"steps": "PCA(2)"}, {"load": "size=2"}), 0.3)
    reference = Script("ExtraTreesRegressor(n_estimators=50)", load="blur=True")
    return Design(pick(rng, ("rmse", "mae")), patches.data, start, reference)


def _waves(rng: np.random.Generator) -> Design:
    patches = Patches(300, HIDDEN_ROWS, noise=pick(rng, (1.5, 2.5)), edges=False)
    start = Script(pick(rng, (*_TREES[:2], "LinearRegression()", "KNeighborsRegressor(n_neighbors=30)")))
    reference = Script("ExtraTreesRegressor(n_estimators=50)", load="blur=True")
    return Design(pick(rng, ("rmse", "mae")), patches.data, start, reference)


def _topics(rng: np.random.Generator) -> Design:
    topics = Topics(pick(rng, (200, 300)), HIDDEN_ROWS, classes=pick(rng, (2, 3)), strength=pick(rng, (5.0, 8.0)))
    metrics = ("accuracy", "auc") if topics.classes == 2 else ("accuracy", "macro_f1")
    start = Script(pick(rng, _CLASSIFIERS), load=pick(rng, ("words=20", "words=50", "words=100")))
    reference = Script("LogisticRegression(C=10)", load="words=600, tfidf=True")
    return Design(pick(rng, metrics), topics.data, start, reference)


def _essays(rng: np.random.Generator) -> Design:
    essays = Essays(pick(rng, (200, 300)), HIDDEN_ROWS, grades=pick(rng, (0, 5)))
    start = Script(
        pick(rng, (*_TREES, "LinearRegression()", "KNeighborsRegressor()")), load=pick(rng, ("words=20", "words=100"))
    )
    reference = Script("Ridge(alpha=1)", load="words=600, tfidf=True")
    return Design("qwk" if essays.grades else pick(rng, ("rmse", "pcc")), essays.data, start, reference)


def _communities(rng: np.random.Generator) -> Design:
    graph = Communities(200, 400, communities=pick(rng, (2, 3)), within=4.0, across=pick(rng, (2.0, 3.0)), signal=0.4)
    start = Script(pick(rng, (*_CLASSIFIERS[:3], "LogisticRegression()", "GaussianNB()")))
    reference = Script("LogisticRegression(C=1)", load="hops=2, spectral=8, votes=True", steps="StandardScaler()")
    # With an overconfident tree as the start, log loss hardly distinguishes better models.
    sure = start.model.startswith(("Decision", "KNeighbors"))
    return Design(
        pick(rng, ("accuracy", "macro_f1") if sure else ("accuracy", "log_loss")), graph.data, start, reference
    )


def _influence(rng: np.random.Generator) -> Design:
    graph = Communities(200, 400, communities=3, signal=0.5, number=True)
    start = Script(pick(rng, (*_TREES, "LinearRegression()", "Ridge(alpha=100)", "KNeighborsRegressor()")))
    reference = Script("Ridge(alpha=1)", load="hops=2, votes=True", steps="StandardScaler()")
    return Design(pick(rng, ("rmse", "pcc")), graph.data, start, reference)


def families() -> tuple[Family, ...]:
    """Return all families of these kinds."""
    rows = (
        ("seasons", "time_series", "train", "Forecast units whose values have a season.", _seasonal),
        ("walk", "time_series", "train", "Forecast units whose values drift.", _walk),
        ("figures", "image", "train", "Tell figures in noisy images apart.", _figures),
        ("patches", "image", "train", "Restore the middle pixel of noisy patches with edges.", _patches),
        ("topics", "text", "train", "Tell the topic of a text.", _topics),
        ("communities", "graph", "train", "Tell a node's community.", _communities),
        ("amounts", "time_series", "held_out", "Forecast seasonal amounts with a long tail.", _amounts),
        ("waves", "image", "held_out", "Restore the middle pixel of noisy patches of waves.", _waves),
        ("essays", "text", "held_out", "Grade texts by the words they use.", _essays),
        ("influence", "graph", "held_out", "Predict a number that spreads along links.", _influence),
    )
    return tuple(Family(*row) for row in rows)
