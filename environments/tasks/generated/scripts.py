"""The starting scripts: percent-format cells with fixed names and variables, the same for every embedded task.

One policy serves all tasks, and an edit names a cell. So the cells, the variables that pass between them (`x`, `y`,
`z`, `steps`, `target`, `model`) and the helper's functions never change; only the cells' contents do.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

from environments.tasks.generated import starter

_MODULES = {
    "decomposition": "PCA TruncatedSVD",
    "dummy": "DummyClassifier DummyRegressor",
    "ensemble": "AdaBoostClassifier AdaBoostRegressor BaggingClassifier BaggingRegressor ExtraTreesClassifier"
    " ExtraTreesRegressor GradientBoostingClassifier GradientBoostingRegressor HistGradientBoostingClassifier"
    " HistGradientBoostingRegressor RandomForestClassifier RandomForestRegressor",
    "feature_selection": "SelectKBest SelectPercentile VarianceThreshold f_classif f_regression",
    "kernel_approximation": "Nystroem RBFSampler",
    "kernel_ridge": "KernelRidge",
    "linear_model": "BayesianRidge ElasticNet HuberRegressor Lasso LinearRegression LogisticRegression Ridge"
    " RidgeClassifier",
    "discriminant_analysis": "LinearDiscriminantAnalysis",
    "naive_bayes": "BernoulliNB GaussianNB MultinomialNB",
    "neighbors": "KNeighborsClassifier KNeighborsRegressor NearestCentroid",
    "preprocessing": "KBinsDiscretizer MinMaxScaler Normalizer PolynomialFeatures PowerTransformer"
    " QuantileTransformer RobustScaler SplineTransformer StandardScaler",
    "svm": "SVC SVR LinearSVC LinearSVR",
    "tree": "DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor",
}
MODULE_OF = {name: f"sklearn.{module}" for module, names in _MODULES.items() for name in names.split()}
"""Module of every scikit-learn name that starting scripts and ideas use."""


def with_imports(code: str) -> str:
    """Prepend the imports for the scikit-learn names in `code`, one line per module."""
    needed = defaultdict(list)
    for name in re.findall(r"[A-Za-z_]\w*", code):
        if name in MODULE_OF and name not in needed[MODULE_OF[name]]:
            needed[MODULE_OF[name]].append(name)
    lines = [f"from {module} import {', '.join(names)}" for module, names in needed.items()]
    return "\n".join([*lines, code])


@dataclasses.dataclass(frozen=True)
class Script:
    """A starting script by cell, without the import lines, which follow from the names used."""

    model: str
    """Constructor of the model, for example `Ridge(alpha=10)`."""
    load: str = ""
    """Arguments of `load`, for example `rows=100`."""
    steps: str = ""
    """Transformers before the model, separated by commas."""
    target: str = "None"
    """Transformation of the target: see `build` in helper.py."""
    fit: str = "model = build(steps, model, target)"
    """Statement that builds the estimator from `steps`, `model` and `target`."""
    save: str = ""
    """Arguments of `save` after the model and the inputs, for example `shrink=0.1`."""

    def cells(self) -> dict[str, str]:
        """Return the body of every cell by name, in order."""
        return {
            "data": f"from helper import load, build, check, save\nx, y, z = load({self.load})",
            "features": with_imports(f"steps = [{self.steps}]"),
            "target": f"target = {self.target}",
            "model": with_imports(f"model = {self.model}"),
            "fit": f"{with_imports(self.fit)}\ncheck(model, x, y)\nmodel.fit(x, y)",
            "predict": f"save({', '.join(filter(None, ('model', 'z', self.save)))})",
        }

    def text(self) -> str:
        """Return the script in percent format."""
        return "".join(f"# %% {name}\n{body}\n" for name, body in self.cells().items())


def write_cells(env: Path, kind: str, model: str) -> None:
    """Write the workspace of a task of your own with the cells of the embedded tasks: train.py, helper.py, loading.py.

    Args:
      env: The task's folder `env`; created if it is missing.
      kind: Kind of its data: tabular, image, text, time_series or graph. docs/bring_your_own_task.md has their files.
      model: Constructor of the starting script's model, for example `Ridge(alpha=10)`.
    """
    env.mkdir(parents=True, exist_ok=True)
    texts = {"train": Script(model).text(), "helper": starter.helper_text(), "loading": starter.loading_text(kind)}
    for name, text in texts.items():
        (env / f"{name}.py").write_text(text, encoding="utf-8")


CELLS = tuple(Script("").cells())
"""Names of the cells."""
