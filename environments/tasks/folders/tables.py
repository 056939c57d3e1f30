"""The prepare.py of the factory's tasks: splits a table as a plan says, and writes public files and answers.

    raw/table.csv, raw/plan.json -> public: train.csv, test.csv, target.csv, about.json; private: answers.csv

The plan is JSON, so prepare.py is the same text for every task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from environments.tasks.folders import splits
from environments.tasks.grading import metrics
from environments.tasks.grading.metrics import Form
from environments.tasks.task import TaskError

PREPARE = '''"""Splits raw/table.csv as raw/plan.json says; written by `python -m environments new`, yours to change."""

from environments.tasks.folders.tables import prepare

__all__ = ["prepare"]
'''
TARGET = "y0"


def prepare(raw: Path, public: Path, private: Path, seed: int) -> None:
    """Write the public files and answers.csv of a table (`environments.tasks.folders.folder` calls this).

    Raises:
      TaskError: the plan does not fit the table.
    """
    plan = json.loads((raw / "plan.json").read_text(encoding="utf-8"))
    table = pd.read_csv(raw / "table.csv", dtype=str, keep_default_na=False, na_values=[])
    if TARGET not in table or set(plan["roles"]) - set(table):
        raise TaskError(f"{raw / 'table.csv'} lacks columns of plan.json: make the task again from its source")
    train, test, half = split_table(table, plan, seed)
    roles: Mapping[str, str] = plan["roles"]
    form = metrics.get(plan["metric"]).form
    about = {
        "metric": plan["metric"],
        "classes": 0 if form is Form.ORDINAL else len(plan["classes"]),
        "outputs": 1,
        "grades": len(plan["classes"]) if form is Form.ORDINAL else 0,
        "columns": list(metrics.columns(metrics.get(plan["metric"]), len(plan["classes"]), 1)),
        "ordered": plan["split"] == "time",
        "target": plan["target"],
        "class_names": plan["classes"],
        "roles": roles,
    }
    (public / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for name, part in (("train", train), ("test", test)):
        part[list(roles)].to_csv(public / f"{name}.csv", index=False)
    train[[TARGET]].to_csv(public / "target.csv", index=False)
    answers = pd.DataFrame({"id": np.arange(len(test)), TARGET: test[TARGET]})
    answers.assign(half=half).to_csv(private / "answers.csv", index=False)


def split_table(
    table: pd.DataFrame, plan: Mapping[str, Any], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Return public rows, hidden rows, and the half of each hidden row, as the plan says.

    Raises:
      TaskError: a side or a half would have too few rows or classes.
    """
    features = list(plan["roles"])
    if plan["split"] == "time":
        train, test, groups = _by_time(table, plan["split_column"], plan["hidden"], seed)
    elif plan["split"] == "group":
        train, test = splits.split(table, plan["hidden"], seed, groups=table[plan["split_column"]])
        groups = test[plan["split_column"]]
    elif table[features].duplicated().any():
        # Rows of equal inputs stay together: the labels of hidden ones would be known.
        codes = table.groupby(features, sort=False).ngroup()
        train, test = splits.split(table, plan["hidden"], seed, groups=codes)
        groups = test.groupby(features, sort=False).ngroup()
    else:
        strata = table[TARGET] if plan["split"] == "stratified" else None
        train, test = splits.split(table, plan["hidden"], seed, strata=strata)
        groups = pd.Series(np.arange(len(test)))
    half = _halves(groups, test[TARGET], plan, seed)
    if plan["classes"]:
        wanted = set(table[TARGET])
        sides = {"public rows": train, "reward half": test[half == "reward"], "report half": test[half == "report"]}
        for name, part in sides.items():
            if wanted - set(part[TARGET]):
                raise TaskError(f"the {name} lack a class: another split (--split), or fewer classes, would have all")
    if min(len(train), int((half == "reward").sum()), int((half == "report").sum())) < 8:
        raise TaskError("a side of the split has fewer than 8 rows: use another split, or a larger table")
    return train, test, half


def _by_time(
    table: pd.DataFrame, column: str, hidden: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Return the earlier rows, and the latest ones with the time of each; rows of one time stay together.

    Rows of one time are in random order: the file's order may be that of the target.
    """
    table = table.iloc[np.random.default_rng([seed, 0x71ED]).permutation(len(table))]
    numbers = pd.to_numeric(table[column], errors="coerce")
    key = numbers if numbers.notna().all() else table[column]
    ordered = table.assign(**{"\0time": key}).sort_values("\0time", kind="stable").reset_index(drop=True)
    cut = ordered["\0time"].iloc[min(len(ordered) - 1, round((1 - hidden) * len(ordered)))]
    later = (ordered["\0time"] >= cut).to_numpy()
    plain = ordered.drop(columns="\0time")
    return plain[~later].reset_index(drop=True), plain[later].reset_index(drop=True), ordered["\0time"][later]


def _halves(groups: pd.Series, target: pd.Series, plan: Mapping[str, Any], seed: int) -> np.ndarray:
    """Return the half of each hidden row; single rows of a class alternate, so that both halves have every class."""
    if not plan["classes"] or groups.duplicated().any():
        return splits.halves(groups, seed)
    rng = np.random.default_rng([seed, 0x5EED])
    order = rng.permutation(len(target))
    order = order[np.argsort(target.to_numpy()[order], kind="stable")]
    half = np.empty(len(target), dtype=object)
    half[order] = np.where(np.arange(len(target)) % 2 == 0, "reward", "report")
    return half
