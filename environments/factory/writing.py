"""Writing of a plan as the folder of a task, which `environments.tasks.folders.folder` reads and a person may change.

    task.yaml description.md env/{train,helper,loading}.py prepare.py reference.py raw/{table.csv,plan.json}

Metric and grading are those of the project (`grading.metrics`), so there is no grade.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from environments.factory.choices import TARGET, Plan
from environments.factory.profile import Column
from environments.factory.reading import clean_name
from environments.factory.scripts import Chosen, choose_scripts, ideas
from environments.tasks.folders.tables import PREPARE, split_table
from environments.tasks.generated import starter, traits
from environments.tasks.generated.dataset import Dataset
from environments.tasks.grading import metrics
from environments.tasks.task import TaskError

_LISTED = 40
"""Maximum number of columns that a description lists."""
_METRIC_WORDS = {
    "accuracy": "accuracy", "macro_f1": "the F1 score averaged over the classes", "auc": "the area under the ROC curve",
    "log_loss": "log loss", "map_at_3": "mean average precision at 3", "mae": "the mean absolute error",
    "rmse": "the root mean squared error", "rmsle": "the root mean squared error of log(1 + y)",
    "qwk": "Cohen's kappa with quadratic weights", "pcc": "Pearson's correlation",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a table, as recorded in the task."""

    source: str = "Made from a table by `python -m environments new`."
    about: str = ""
    """Description of the table by its source, in one sentence."""
    license: str = ""


@dataclasses.dataclass(frozen=True)
class Written:
    """A task's folder and the scripts in it."""

    folder: Path
    chosen: Chosen
    traits: str


def task_name(text: str) -> str:
    """Convert any text to a valid name of a task, at most 64 characters."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64].rstrip("-._") or "task"


def write(
    plan: Plan, folder: Path, name: str, origin: Origin = Origin(), seed: int = 0, limit: float = 10.0
) -> Written:
    """Write the task `name` into a new `folder`.

    Args:
      plan: Plan of the task.
      folder: Folder of the task, which must not exist.
      name: Name of the task.
      origin: Origin of the table.
      seed: Seed of the split on which scripts are chosen.
      limit: Maximum CPU seconds of an execution.

    Raises:
      TaskError: The folder exists, or the split leaves a side without rows or classes.
    """
    if folder.exists():
        raise TaskError(f"{folder} exists: choose another name, or delete it")
    table = plan.table.astype(str)
    train, _, _ = split_table(table, plan.to_dict(), seed)
    chosen = choose_scripts(train, plan.to_dict(), name)
    line = _traits(plan, train)
    raw = folder / "raw"
    try:
        (folder / "env").mkdir(parents=True)
        raw.mkdir()
        table.to_csv(raw / "table.csv", index=False)
        _write(raw / "plan.json", json.dumps(plan.to_dict(), indent=1) + "\n")
        _write(folder / "prepare.py", PREPARE)
        _write(folder / "reference.py", chosen.reference.text())
        _write(folder / "env" / "train.py", chosen.start.text())
        _write(folder / "env" / "helper.py", starter.helper_text())
        _write(folder / "env" / "loading.py", starter.loading_text("image" if plan.kind == "image" else "table"))
        _write(folder / "description.md", describe(plan, origin))
        _write(folder / "task.yaml", _yaml(plan, name, line, origin, limit))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Written(folder, chosen, line)


def remarks(plan: Plan, written: Written) -> list[str]:
    """Return what a person should look at."""
    if written.chosen.agrees:
        return list(plan.attention)
    weak = "the reference is not clearly better than the start: write a better reference.py, or a simpler start"
    return [*plan.attention, weak]


def _traits(plan: Plan, train: Any) -> str:
    """Return the line of traits, computed from the public rows only."""
    numbers = [name for name, role in plan.roles.items() if role == "number"]
    columns = [np.array([float(cell) if cell else np.nan for cell in train[name]]) for name in numbers]
    varied = [column for column in columns if len(set(column[~np.isnan(column)].tolist())) > 1]
    inputs = np.stack(varied, axis=1) if varied else np.array(train.index)[:, None].astype(float)
    target = train[TARGET].astype(float).to_numpy()
    metric = metrics.get(plan.metric)
    data = Dataset(inputs, target.astype(int) if metric.classification else target, len(train))
    line = traits.describe("text" if plan.kind == "text" else plan.kind, plan.metric, data)
    line = line.replace(f"{traits.nearest(inputs.shape[1])} columns", f"{traits.nearest(len(plan.roles))} columns")
    held = [
        word
        for word, role in (("categories", "category"), ("dates", "date"), ("texts", "text"))
        if role in plan.roles.values()
    ]
    return ", ".join([line, *held] if plan.kind != "image" else [line])


def describe(plan: Plan, origin: Origin) -> str:
    """Return the description of the task: target, columns, files and score. Names from the data are quoted."""
    classes = ", ".join(f"{place} = {clean_name(name)!r}" for place, name in enumerate(plan.classes[:20]))
    goal = f"Predict {plan.target!r}" + (
        f", a class from 0 to {len(plan.classes) - 1}" if plan.classes else ", a number"
    )
    lines = [f"{goal}, from {len(plan.roles)} {'pixels' if plan.kind == 'image' else 'columns'} of each row."]
    if origin.about:
        lines.append(f"The source calls the table: {clean_name(origin.about)!r}.")
    if classes:
        lines.append(f"Classes: {classes}{' ...' if len(plan.classes) > 20 else ''}.")
    how = {
        "time": "The rows to predict come later than the others.",
        "group": f"The rows to predict are of other groups ({plan.split_column!r}) than the others.",
    }.get(plan.split, "The rows to predict were drawn at random.")
    files = [
        "- `data/train.csv`: the columns of the training rows; an empty cell is missing.",
        "- `data/target.csv`: their targets, in the same order, in the column y0.",
        "- `data/test.csv`: the columns of the rows to predict.",
        "- `data/about.json`: metric, classes, and the role of each column.",
    ]
    shown = (
        []
        if plan.kind == "image"
        else [_line(plan.profile.columns[name], role) for name, role in list(plan.roles.items())[:_LISTED]]
    )
    if len(plan.roles) > _LISTED and plan.kind != "image":
        shown.append(f"- and {len(plan.roles) - _LISTED} more")
    form = ", ".join(metrics.columns(metrics.get(plan.metric), len(plan.classes), 1)[:10])
    score = f"Write `submission.csv` with the columns id, {form}: a row for each row of `data/test.csv`,\n"
    score += "whose ids count from 0. "
    score += f"It is scored by {_METRIC_WORDS[plan.metric]}; {_better(plan.metric)} is better."
    return "\n".join([*lines, how, "", *files, "", *(["Columns:", "", *shown, ""] if shown else []), score, ""])


def _line(column: Column, role: str) -> str:
    missing = f", {column.missing} missing" if column.missing else ""
    return f"- {column.name!r}: {role}, {column.distinct} different values{missing}"


def _better(metric: str) -> str:
    return "higher" if metrics.get(metric).higher_is_better else "lower"


def _yaml(plan: Plan, name: str, line: str, origin: Origin, limit: float) -> str:
    metric = metrics.get(plan.metric)
    whole = metric.form in (metrics.Form.LABEL, metrics.Form.RANKING, metrics.Form.ORDINAL)
    source = origin.source + (f" License: {origin.license}." if origin.license else "")
    record = {
        "name": name,
        "kind": plan.kind,
        "metric": {"name": plan.metric, "direction": _better(plan.metric)},
        "submission": {
            "columns": dict.fromkeys(metrics.columns(metric, len(plan.classes), 1), "integer" if whole else "number")
        },
        "answers": {TARGET: "number"},
        "traits": line,
        "source": " ".join(source.split())[:500],
        "read_only": ["helper.py", "loading.py"],
        "limits": {"cpu_seconds": limit, "wall_seconds": 10 * limit},
        "ideas": [dataclasses.asdict(idea) for idea in ideas(plan.kind, list(plan.roles.values()))],
    }
    return yaml.safe_dump(
        {key: value for key, value in record.items() if value}, sort_keys=False, allow_unicode=True, width=140
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
