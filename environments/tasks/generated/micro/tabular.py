"""Tabular micro-tasks: hidden signals, a truth over them, and columns that show the signals well or badly.

signals u ~ N(0, 1) -> truth f(u), standardised -> target (number, class, grade) with noise
columns = informative signals, blends of them (redundant), and pure noise, each with a scale of its own
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from environments.tasks.generated.dataset import Dataset
from environments.tasks.generated.micro.design import HIDDEN_ROWS, Design, Family, pick, weaken
from environments.tasks.generated.scripts import Script

Truth = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def linear(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sum all signals, none weighted more than twice another."""
    return u @ (rng.choice([-1.0, 1.0], u.shape[1]) * rng.uniform(0.7, 1.3, u.shape[1]))


def rules(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sum boxes around the middle of two signals each: a box adds a constant if both lie within its limits."""
    f = np.zeros(len(u))
    for a, b in (rng.choice(u.shape[1], 2, replace=False) for _ in range(4)):
        low, high = rng.normal(-0.8, 0.2, 2), rng.normal(0.8, 0.2, 2)
        inside = (u[:, [a, b]] > low) & (u[:, [a, b]] < high)
        f += rng.uniform(0.7, 1.5) * rng.choice([-1, 1]) * (inside[:, 0] & inside[:, 1]) + 0.7 * inside[:, 0]
    return f


def smooth(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Curve every signal, after Friedman's benchmark: a wave, a product, a parabola and a slope."""
    a, b, c, d = rng.permutation(u.shape[1])[:4]
    return 1.5 * np.sin(1.5 * u[:, a]) + u[:, a] * u[:, b] + 0.7 * u[:, c] ** 2 + 0.7 * u[:, d]


def radial(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the distance from a point near the middle."""
    return np.sqrt(np.sum((u[:, :4] - rng.normal(0, 0.2, 4)) ** 2, axis=1))


def hinges(u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return slopes that change at a knot."""
    knots, slopes = rng.normal(0, 0.5, u.shape[1]), rng.uniform(1, 2, u.shape[1]) * rng.choice([-1, 1], u.shape[1])
    return np.maximum(u - knots, 0) @ slopes + 0.3 * u.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Table:
    """Distribution of columns and targets."""

    truth: Truth
    rows: int
    informative: int
    noise_columns: int = 0
    redundant: int = 0
    scales: float = 0.0
    """Spread of log10 of the columns' scales."""
    missing: float = 0.0
    skewed_columns: bool = False
    noise: float = 0.3
    """Noise, in standard deviations of the truth."""
    classes: int = 0
    """Number of classes; 0 for a numeric target."""
    rare: float = 0.0
    """Share of the rarer of two classes; 0: equal shares."""
    label_noise: float = 0.0
    """Share of training labels that are redrawn."""
    outliers: float = 0.0
    """Share of training targets that are outliers."""
    skewed_target: bool = False
    grades: int = 0
    """Number of ordinal grades; 0 for none."""
    outputs: int = 1

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data."""
        total = self.rows + HIDDEN_ROWS
        u = rng.normal(size=(total, self.informative))
        targets = np.column_stack([self._target(u, rng) for _ in range(self.outputs)])
        targets = targets[:, 0] if self.outputs == 1 else targets
        return Dataset(self._columns(u, rng), targets, self.rows)

    def _columns(self, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        blends = u @ (rng.normal(size=(u.shape[1], self.redundant)) * (rng.random((u.shape[1], self.redundant)) < 0.4))
        whole = np.hstack([u, blends, rng.normal(size=(len(u), self.noise_columns))])
        whole += 0.05 * rng.normal(size=whole.shape)
        if self.skewed_columns:
            whole = np.exp(1.2 * whole)
        whole = (whole + rng.normal(0, 2, whole.shape[1])) * 10.0 ** rng.normal(0, self.scales, whole.shape[1])
        whole[rng.random(whole.shape) < self.missing] = np.nan
        return whole[:, rng.permutation(whole.shape[1])]

    def _target(self, u: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        f = self.truth(u, rng)
        f = (f - f.mean()) / f.std() + self.noise * rng.normal(size=len(u))
        train = np.arange(len(u)) < self.rows
        if self.classes or self.grades:
            shares = np.linspace(0, 1, (self.classes or self.grades) + 1)[1:-1]
            shares = [1 - self.rare] if self.rare else shares
            label = np.searchsorted(np.quantile(f, shares), f)
            wrong = np.flatnonzero(train & (rng.random(len(u)) < self.label_noise))
            label[wrong] = rng.permutation(label[wrong])
            return label if self.classes else label.astype(float)
        far = train & (rng.random(len(u)) < self.outliers)
        f = f + far * rng.choice([-1, 1], len(u)) * rng.uniform(8, 20, len(u))
        return np.exp(1.1 * f + 3) if self.skewed_target else 20.0 * f + 100.0


_WEAK_REGRESSORS = {
    "linear": (
        "GradientBoostingRegressor(n_estimators=50)",
        "DecisionTreeRegressor(min_samples_leaf=10)",
        "KNeighborsRegressor(n_neighbors=15)",
        "RandomForestRegressor(n_estimators=10)",
        "RandomForestRegressor(n_estimators=30)",
        "SVR(C=10)",
    ),
    "curved": (
        "LinearRegression()",
        "Ridge(alpha=10)",
        "KNeighborsRegressor(n_neighbors=15)",
        "DecisionTreeRegressor(max_depth=3)",
        "SVR()",
        "Lasso(alpha=1)",
    ),
}
_WEAK_CLASSIFIERS = {
    "linear": (
        "GradientBoostingClassifier(n_estimators=50)",
        "DecisionTreeClassifier(max_depth=3)",
        "KNeighborsClassifier()",
        "RandomForestClassifier(n_estimators=10)",
        "RandomForestClassifier(n_estimators=30)",
        "GaussianNB()",
    ),
    "curved": (
        "LogisticRegression()",
        "LogisticRegression(C=0.01)",
        "DecisionTreeClassifier(max_depth=3)",
        "KNeighborsClassifier(n_neighbors=15)",
        "RidgeClassifier()",
        "LinearDiscriminantAnalysis()",
    ),
}
_SURE = ("DecisionTreeClassifier()", "KNeighborsClassifier(n_neighbors=1)", "GaussianNB()")
_WEAKNESSES = (
    {"load": "rows=60"},
    {"steps": "PCA(2)"},
    {"steps": "StandardScaler(), PCA(3)"},
    {"steps": 'KBinsDiscretizer(2, encode="onehot-dense")'},
    {"steps": "Normalizer()"},
)


def _design(
    rng: np.random.Generator,
    table: Table,
    metrics: Sequence[str],
    weak: Sequence[str],
    reference: Script,
    weaknesses: Sequence[dict[str, str]] = _WEAKNESSES,
    rate: float = 0.25,
) -> Design:
    metric = pick(rng, metrics)
    if metric == "log_loss":
        # With an overconfident model as the start, log loss hardly distinguishes better models.
        weak = [model for model in weak if model not in _SURE]
    start = weaken(rng, Script(model=pick(rng, weak)), weaknesses, rate)
    return Design(metric, table.data, start, reference)


def _linear_regression(rng: np.random.Generator) -> Design:
    table = Table(linear, pick(rng, (100, 200)), int(rng.integers(6, 16)), redundant=pick(rng, (0, 8)),
                  scales=pick(rng, (0.0, 1.0)), noise=pick(rng, (0.2, 0.5)))  # fmt: skip
    reference = Script(steps="StandardScaler()", model="Ridge(alpha=1)")
    return _design(rng, table, ("rmse", "mae", "pcc"), _WEAK_REGRESSORS["linear"], reference)


def _sparse_regression(rng: np.random.Generator) -> Design:
    table = Table(linear, 100, 3, noise_columns=pick(rng, (50, 90)), noise=0.3)
    weak = ("LinearRegression()", "KNeighborsRegressor()", "SVR()", "Ridge(alpha=0.1)", "DecisionTreeRegressor()")
    reference = Script(steps="SelectKBest(f_regression, k=5)", model="Ridge(alpha=1)")
    return _design(rng, table, ("rmse", "mae"), weak, reference, ({"load": "rows=60"}, {"steps": "PCA(5)"}), 0.5)


def _rules_regression(rng: np.random.Generator) -> Design:
    table = Table(rules, pick(rng, (200, 300)), int(rng.integers(4, 7)), noise_columns=pick(rng, (0, 4)),
                  scales=pick(rng, (0.0, 1.0)), noise=0.2)  # fmt: skip
    reference = Script(model="ExtraTreesRegressor(n_estimators=50)")
    return _design(rng, table, ("rmse", "mae", "pcc"), _WEAK_REGRESSORS["curved"], reference)


def _smooth_regression(rng: np.random.Generator) -> Design:
    table = Table(smooth, pick(rng, (200, 300)), int(rng.integers(4, 7)), scales=pick(rng, (0.0, 1.0)), noise=0.15)
    reference = Script(steps="StandardScaler()", model="SVR(C=100)")
    return _design(rng, table, ("rmse", "mae", "pcc"), _WEAK_REGRESSORS["curved"], reference)


def _skewed_regression(rng: np.random.Generator) -> Design:
    table = Table(pick(rng, (linear, linear, rules)), pick(rng, (200, 300)), int(rng.integers(4, 8)),
                  scales=pick(rng, (0.0, 0.7)), noise=0.2, skewed_target=True)  # fmt: skip
    weak = (
        "LinearRegression()",
        "Ridge(alpha=1)",
        "KNeighborsRegressor(n_neighbors=30)",
        "DecisionTreeRegressor(max_depth=2)",
    )
    model = "ExtraTreesRegressor(n_estimators=50)" if table.truth is rules else "Ridge(alpha=1)"
    reference = Script(steps="StandardScaler()", target='"log"', model=model)
    return _design(rng, table, ("rmsle", "rmsle", "mae"), weak, reference, rate=0.3)


def _outlier_regression(rng: np.random.Generator) -> Design:
    table = Table(linear, pick(rng, (100, 200)), int(rng.integers(5, 12)), scales=pick(rng, (0.0, 0.7)), noise=0.3,
                  outliers=pick(rng, (0.05, 0.1)))  # fmt: skip
    weak = (
        "LinearRegression()",
        "DecisionTreeRegressor()",
        "KNeighborsRegressor(n_neighbors=1)",
        "ExtraTreesRegressor(n_estimators=20)",
    )
    reference = Script(steps="StandardScaler()", model="HuberRegressor()")
    return _design(rng, table, ("mae", "rmse"), weak, reference, rate=0.4)


def _linear_classes(rng: np.random.Generator) -> Design:
    table = Table(linear, pick(rng, (100, 200)), int(rng.integers(8, 20)), redundant=pick(rng, (0, 10)), noise=0.2,
                  scales=pick(rng, (0.0, 1.0)), classes=2, label_noise=pick(rng, (0.0, 0.1)))  # fmt: skip
    reference = Script(steps="StandardScaler()", model="LogisticRegression(C=0.3)")
    return _design(rng, table, ("accuracy", "auc", "log_loss"), _WEAK_CLASSIFIERS["linear"], reference)


def _rules_classes(rng: np.random.Generator) -> Design:
    table = Table(rules, pick(rng, (200, 300)), int(rng.integers(4, 7)), noise_columns=pick(rng, (0, 5)), noise=0.1,
                  scales=pick(rng, (0.0, 1.0)), classes=pick(rng, (2, 3)))  # fmt: skip
    metrics = ("accuracy", "log_loss") if table.classes > 2 else ("accuracy", "auc")
    reference = Script(model="RandomForestClassifier(n_estimators=50)")
    return _design(rng, table, metrics, _WEAK_CLASSIFIERS["curved"], reference)


def _rings(rng: np.random.Generator) -> Design:
    table = Table(radial, pick(rng, (200, 300)), int(rng.integers(4, 7)), scales=pick(rng, (0.0, 1.0)), noise=0.1,
                  classes=pick(rng, (2, 3)))  # fmt: skip
    metrics = ("accuracy", "log_loss") if table.classes > 2 else ("accuracy", "auc")
    reference = Script(
        steps="StandardScaler()", model="SVC(C=10, probability=True)" if "log_loss" in metrics else "SVC(C=10)"
    )
    return _design(rng, table, metrics, _WEAK_CLASSIFIERS["curved"], reference)


def _rare_class(rng: np.random.Generator) -> Design:
    table = Table(linear, 300, int(rng.integers(5, 12)), noise=0.3, scales=pick(rng, (0.0, 0.7)), classes=2,
                  rare=pick(rng, (0.06, 0.1)))  # fmt: skip
    weak = (
        "KNeighborsClassifier(n_neighbors=15)",
        "RandomForestClassifier(n_estimators=30)",
        "LogisticRegression(C=0.01)",
        "SVC(C=0.3)",
    )
    reference = Script(steps="StandardScaler()", target='"balanced"', model="LogisticRegression(C=1)")
    return _design(rng, table, ("macro_f1",), weak, reference, rate=0.4)


def _missing_cells(rng: np.random.Generator) -> Design:
    regression = rng.random() < 0.5
    table = Table(linear, 200, int(rng.integers(5, 9)), redundant=12, noise=0.1, missing=pick(rng, (0.1, 0.2)),
                  scales=0.3, classes=0 if regression else 2)  # fmt: skip
    if regression:
        weak, metrics = (
            ("RandomForestRegressor(n_estimators=10)", "KNeighborsRegressor()", "DecisionTreeRegressor(max_depth=4)"),
            ("rmse", "mae"),
        )
        reference = Script(load='fill="mean"', steps="StandardScaler()", model="Ridge(alpha=10)")
    else:
        weak, metrics = (
            (
                "KNeighborsClassifier()",
                "DecisionTreeClassifier(max_depth=3)",
                "RandomForestClassifier(n_estimators=10)",
            ),
            ("accuracy", "auc"),
        )
        reference = Script(load='fill="mean"', steps="StandardScaler()", model="LogisticRegression(C=0.3)")
    return _design(rng, table, metrics, weak, reference, rate=0.3)


def _skewed_columns(rng: np.random.Generator) -> Design:
    table = Table(linear, 200, int(rng.integers(5, 10)), noise=0.2, skewed_columns=True, scales=pick(rng, (0.0, 1.0)))
    reference = Script(steps="PowerTransformer()", model="Ridge(alpha=1)")
    weak = ("LinearRegression()", "KNeighborsRegressor(n_neighbors=30)", "SVR()", "DecisionTreeRegressor(max_depth=2)")
    return _design(rng, table, ("rmse", "mae", "pcc"), weak, reference, ({"load": "rows=60"}, {"steps": "PCA(2)"}), 0.4)


def _grades(rng: np.random.Generator) -> Design:
    table = Table(pick(rng, (linear, hinges)), 200, int(rng.integers(5, 10)), noise=0.3, grades=pick(rng, (4, 6)),
                  scales=pick(rng, (0.0, 1.0)))  # fmt: skip
    reference = Script(steps="StandardScaler()", model="SVR(C=3)" if table.truth is hinges else "Ridge(alpha=1)")
    return _design(rng, table, ("qwk",), _WEAK_REGRESSORS["linear"][:4], reference)


def _several_outputs(rng: np.random.Generator) -> Design:
    table = Table(linear, 150, int(rng.integers(6, 12)), noise=0.3, outputs=3, redundant=pick(rng, (0, 6)),
                  scales=pick(rng, (0.0, 1.0)))  # fmt: skip
    reference = Script(steps="StandardScaler()", model="Ridge(alpha=1)")
    return _design(rng, table, ("mcrmse",), _WEAK_REGRESSORS["linear"][:3], reference)


def _hinges_regression(rng: np.random.Generator) -> Design:
    table = Table(hinges, pick(rng, (200, 300)), int(rng.integers(4, 7)), noise_columns=pick(rng, (0, 5)), noise=0.2,
                  scales=pick(rng, (0.0, 1.0)))  # fmt: skip
    reference = Script(steps="StandardScaler()", model="SVR(C=100)")
    weak = ("DecisionTreeRegressor()", *_WEAK_REGRESSORS["curved"][1:4])
    return _design(rng, table, ("rmse", "mae"), weak, reference)


def _noisy_labels(rng: np.random.Generator) -> Design:
    table = Table(pick(rng, (linear, radial)), 300, int(rng.integers(5, 10)), noise=0.2, classes=2, label_noise=0.3,
                  scales=pick(rng, (0.0, 1.0)))  # fmt: skip
    model = "SVC(C=1)" if table.truth is radial else "LogisticRegression(C=0.1)"
    reference = Script(steps="StandardScaler()", model=model)
    weak = ("DecisionTreeClassifier()", "KNeighborsClassifier(n_neighbors=1)", "ExtraTreesClassifier(n_estimators=5)")
    return _design(rng, table, ("accuracy", "auc"), weak, reference)


def families() -> tuple[Family, ...]:
    """Return all families of this kind."""
    rows = (
        ("linear-numbers", "train", "Predict a number that depends on every signal alike.", _linear_regression),
        ("sparse-numbers", "train", "Predict a number that depends on three of many columns.", _sparse_regression),
        ("rules-numbers", "train", "Predict a number that follows from rules.", _rules_regression),
        ("smooth-numbers", "train", "Predict a number that bends with its signals.", _smooth_regression),
        ("skewed-numbers", "train", "Predict an amount: a few are very large.", _skewed_regression),
        ("outliers", "train", "Predict a number; some of the known ones are far off.", _outlier_regression),
        ("skewed-columns", "train", "Predict a number from columns with long tails.", _skewed_columns),
        ("linear-classes", "train", "Tell two classes that a plane divides.", _linear_classes),
        ("rules-classes", "train", "Tell classes that rules define.", _rules_classes),
        ("rings", "train", "Tell classes that lie around each other.", _rings),
        ("rare-class", "train", "Find the rare one of two classes.", _rare_class),
        ("missing-cells", "train", "Predict although many cells are missing.", _missing_cells),
        ("grades", "held_out", "Predict an ordinal grade.", _grades),
        ("several-outputs", "held_out", "Predict several numbers at once.", _several_outputs),
        ("hinges", "held_out", "Predict a number whose slopes change at knots.", _hinges_regression),
        ("noisy-labels", "held_out", "Tell two classes; many known labels are wrong.", _noisy_labels),
    )
    return tuple(Family(name, "tabular", split, text, design) for name, split, text, design in rows)
