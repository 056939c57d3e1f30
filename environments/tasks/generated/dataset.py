"""Conversion of arrays to a task's folder: public files, hidden labels in two halves, starting script, reference.

Every embedded task and micro-task is a function from a seed to a `Dataset`, and two scripts. `write` does the rest for
all of them, so that a task is a page of code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from environments.tasks.generated import starter
from environments.tasks.generated.scripts import Script
from environments.tasks.generated.traits import describe
from environments.tasks.grading import metrics
from environments.tasks.grading.halves import report_half
from environments.tasks.grading.submissions import Answers
from environments.tasks.task import TaskSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data of one task for one seed. The first `train_rows` rows are public with their targets."""

    inputs: np.ndarray
    """Inputs: `[rows, columns]` numbers (NaN if missing), or `[rows]` texts of one line each."""
    targets: np.ndarray
    """Targets: `[rows]` classes 0 ... as integers, `[rows]` numbers, or `[rows, outputs]`."""
    train_rows: int
    edges: np.ndarray | None = None
    """Edges of a graph: `[edges, 2]` connected rows of `inputs`."""
    period: int = 1
    """Period of a series, in steps. The first input columns of a series are the time and the steps ahead."""
    horizon: int = 1
    """Maximum number of steps from a row's last known value to its forecast."""
    digits: int = 4
    """Significant digits of the inputs in the files."""


def write(directory: Path, spec: TaskSpec, data: Dataset, script: Script, reference: Script, seed: int) -> TaskSpec:
    """Write env/, public/ and private/ under `directory`; return `spec` with the traits computed from the data."""
    spec = dataclasses.replace(spec, traits=describe(spec.kind, spec.metric, data))
    metric = metrics.get(spec.metric)
    classes = int(data.targets.max()) + 1 if metric.classification else 0
    hidden = data.targets[data.train_rows :]
    answers = Answers(metric, classes, hidden, report=report_half(len(hidden), seed))
    env, public, private = (directory / name for name in ("env", "public", "private"))
    for folder in (env, public, private):
        folder.mkdir(parents=True)
    private.chmod(0o700)
    answers.save(private / "answers.npz")
    _write(private / "reference.py", reference.text())
    _write(env / spec.entry, script.text())
    _write(env / "helper.py", starter.helper_text())
    _write(env / "loading.py", starter.loading_text(spec.kind))
    _write_public(public, spec, data, answers)
    return spec


def _write_public(public: Path, spec: TaskSpec, data: Dataset, answers: Answers) -> None:
    about: Mapping[str, object] = {
        "metric": spec.metric,
        "classes": answers.classes,
        "outputs": 1 if data.targets.ndim == 1 else data.targets.shape[1],
        "grades": int(data.targets.max()) + 1 if answers.metric.form is metrics.Form.ORDINAL else 0,
        "columns": list(answers.columns),
        "ordered": spec.kind == "time_series",
        "period": data.period,
        "horizon": data.horizon,
    }
    _write(public / "about.json", json.dumps(about, indent=1) + "\n")
    _write(public / "description.md", f"# {spec.name}\n\n{spec.description}\n\n{spec.source}\n")
    train, test = data.inputs[: data.train_rows], data.inputs[data.train_rows :]
    if data.inputs.ndim == 1:
        for name, texts in (("train", train), ("test", test)):
            _write(public / f"{name}.txt", "\n".join(texts) + "\n")
    else:
        names = [f"c{column}" for column in range(data.inputs.shape[1])]
        if spec.kind == "graph":
            # The node's number joins the rows with the edges.
            names = ["node", *names]
            train, test = (
                np.column_stack([nodes, part])
                for nodes, part in zip(
                    np.split(np.arange(len(data.inputs)), [data.train_rows]), (train, test), strict=True
                )
            )
            _write_table(public / "edges.csv", ["node", "other"], data.edges, "%d")
        _write_table(public / "train.csv", names, train, f"%.{data.digits}g")
        _write_table(public / "test.csv", names, test, f"%.{data.digits}g")
    targets = data.targets[: data.train_rows].reshape(data.train_rows, -1)
    _write_table(public / "target.csv", [f"y{output}" for output in range(targets.shape[1])], targets, "%.6g")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_table(path: Path, names: list[str], table: np.ndarray, form: str) -> None:
    np.savetxt(path, table, fmt=form, delimiter=",", header=",".join(names), comments="")
