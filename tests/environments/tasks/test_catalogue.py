"""Every embedded task and every family of micro-tasks: names, splits, scripts, traits, determinism."""

from __future__ import annotations

import ast
import hashlib
import json
import pydoc_data.topics
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from environments import tasks
from environments.actions.edits import read_cells, replace_cell
from environments.tasks import TaskError
from environments.tasks.generated import micro
from environments.tasks.generated.dataset import Dataset
from environments.tasks.generated.embedded import texts
from environments.tasks.generated.scripts import CELLS, Script, with_imports
from environments.tasks.generated.traits import describe
from environments.tasks.grading.metrics import METRICS

FAMILIES = [*micro.family_names("train"), *micro.family_names("held_out")]
MICRO = [f"micro-{family}-0" for family in FAMILIES]


def folder_digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_there_are_tasks_of_all_kinds_and_metrics_in_both_splits():
    train, held_out = tasks.names("train"), tasks.names("held_out")
    assert len(train) >= 12 and len(held_out) >= 10 and not set(train) & set(held_out)
    assert set(tasks.names()) == {*train, *held_out}
    for split in (train, held_out):
        specs = [tasks.get(name).spec for name in split]
        assert {spec.kind for spec in specs} == {"tabular", "image", "text", "time_series", "graph"}
    assert {tasks.get(name).spec.metric for name in tasks.names()} == set(METRICS)


def test_unknown_names_name_the_nearest():
    with pytest.raises(TaskError, match="did you mean 'diabetes'"):
        tasks.get("diabtes")
    with pytest.raises(TaskError, match="did you mean 'micro-rings-0'"):
        tasks.get("micro-ring-3")
    with pytest.raises(TaskError, match="must end in a seed"):
        tasks.get("micro-rings-01")
    with pytest.raises(TaskError, match="train, held_out"):
        tasks.names("test")


def test_micro_tasks_spread_over_whole_families():
    names = micro.names("held_out", 20, seed=3)
    assert len(set(names)) == 20
    assert {name.removeprefix("micro-").rpartition("-")[0] for name in names} == set(micro.family_names("held_out"))
    assert not set(names) & set(micro.names("held_out", 20, seed=4))
    assert not set(micro.family_names("train")) & set(micro.family_names("held_out"))


@pytest.mark.parametrize("name", [*tasks.names(), *MICRO])
def test_a_build_is_complete_and_deterministic(name, tmp_path):
    task = tasks.get(name)
    first = task.build(tmp_path / "first", 0)
    assert first == task.build(tmp_path / "second", 0)
    assert folder_digest(tmp_path / "first") == folder_digest(tmp_path / "second")
    task.build(tmp_path / "third", 1)
    assert folder_digest(tmp_path / "first") != folder_digest(tmp_path / "third")

    script = (tmp_path / "first/env/train.py").read_text()
    reference = (tmp_path / "first/private/reference.py").read_text()
    assert tuple(read_cells(script)) == tuple(read_cells(reference)) == CELLS
    assert script != reference and 10 <= len(script.splitlines()) <= 20
    ast.parse(script), ast.parse(reference)
    assert {path.name for path in (tmp_path / "first/env").iterdir()} == {"train.py", *first.read_only}
    assert first.traits.startswith(first.kind.replace("_", " ")) and len(first.traits.split(", ")) <= 8
    assert first.description and first.source


@pytest.mark.parametrize("name", [name for name in tasks.names() if tasks.get(name).spec.kind == "time_series"])
def test_a_forecast_lies_after_all_that_is_public(name, tmp_path):
    """Every public number is of the origin or before, every hidden one later, and no row is another's past."""
    tasks.get(name).build(tmp_path / "built", 0)
    public = tmp_path / "built" / "public"
    train, test = (np.loadtxt(public / f"{part}.csv", delimiter=",", skiprows=1) for part in ("train", "test"))
    (origin,) = set(test[:, 0] - test[:, 1])  # the last known time of every hidden row
    assert train[:, 0].max() <= origin < test[:, 0].min()
    horizon = json.loads((public / "about.json").read_text())["horizon"]
    assert set(train[:, 1]) == set(test[:, 1]) == set(range(1, horizon + 1))
    windows = {
        tuple(row)
        for part in (train[:, 2:], test[:, 2:])
        for row in np.lib.stride_tricks.sliding_window_view(part, 6, axis=1).reshape(-1, 6)
    }
    assert len(windows) == (len(train) + len(test)) * (train.shape[1] - 2 - 5), "histories share no six values in a row"


def originals(name):
    """Rows or texts of the public data set that a task is made from."""
    loaders = {"breast-cancer": "load_breast_cancer", "wine": "load_wine", "diabetes": "load_diabetes"}
    loaders |= {"iris": "load_iris", "digits": "load_digits"}
    if name in loaders:
        return getattr(datasets, loaders[name])().data
    words = {
        "docstrings": lambda: texts._docstrings_of([module for group in texts._DOCSTRING_MODULES for module in group]),
        "help-topics": lambda: pydoc_data.topics.topics.values(),
        "character-names": lambda: [unicodedata.name(chr(code), "") for code in range(0x2FFFF)],
    }
    return [" ".join(re.sub("[^a-z]", " ", text.lower()).split()) for text in words[name]()]


@pytest.mark.parametrize("name", ["breast-cancer", "wine", "diabetes", "iris", "digits"])
def test_32_no_row_of_a_table_is_found_in_the_public_original(name, tmp_path):
    """By its values in the original's units, in any order of columns."""
    tasks.get(name).build(tmp_path / "built", 0)
    hidden = np.loadtxt(tmp_path / "built/public/test.csv", delimiter=",", skiprows=1)
    rows = originals(name)
    if name == "digits":  # Whole numbers of a small range: only a whole image tells.
        assert not {tuple(row) for row in np.sort(hidden)} & {tuple(row) for row in np.sort(rows)}
        return
    known = [{f"{value:.4g}" for value in row} for row in rows]
    for row in hidden[:100]:
        values = {f"{value:.4g}" for value in row}
        assert max(len(values & other) for other in known) < len(values) / 2


@pytest.mark.parametrize("name", ["docstrings", "help-topics", pytest.param("character-names", marks=pytest.mark.slow)])
def test_32_no_text_is_found_in_the_public_original(name, tmp_path):
    tasks.get(name).build(tmp_path / "built", 0)
    hidden = (tmp_path / "built/public/test.txt").read_text().splitlines()
    known = {word for text in originals(name) for word in text.split()}
    words = [word for text in hidden for word in text.split() if len(word) > 3]
    assert np.mean([word in known for word in words]) < 0.02


def test_scripts_import_what_they_name():
    assert with_imports("steps = [StandardScaler(), PCA(2), MinMaxScaler()]") == (
        "from sklearn.preprocessing import StandardScaler, MinMaxScaler\n"
        "from sklearn.decomposition import PCA\n"
        "steps = [StandardScaler(), PCA(2), MinMaxScaler()]"
    )


def test_a_cell_is_replaced_and_the_others_stay():
    text = Script("Ridge()", load="rows=10").text()
    changed = replace_cell(text, "model", "model = None")
    assert read_cells(changed) == {**read_cells(text), "model": "model = None"}


def test_traits_tell_what_the_data_show():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(100, 10))
    target = rng.normal(size=100)
    words = describe("tabular", "rmse", Dataset(plain, target, 100))
    assert words == "tabular regression, 100 rows, 10 columns"
    scaled = plain * np.logspace(0, 3, 10)
    assert "scales differ" in describe("tabular", "rmse", Dataset(scaled, target, 100))
    assert "skewed target" in describe("tabular", "rmse", Dataset(plain, np.exp(2 * target), 100))
    far = np.where(np.arange(100) < 5, 50 * np.sign(target), target)
    assert "outliers" in describe("tabular", "rmse", Dataset(plain, far, 100))
    missing = np.where(rng.random(plain.shape) < 0.2, np.nan, plain)
    assert "many missing" in describe("tabular", "rmse", Dataset(missing, target, 100))
    assert "skewed columns" in describe("tabular", "rmse", Dataset(np.exp(1.5 * plain), target, 100))
    twice = np.hstack([plain, plain + 0.01])
    assert "redundant columns" in describe("tabular", "rmse", Dataset(twice, target, 100))
    rare = (np.arange(100) < 8).astype(int)
    assert describe("tabular", "auc", Dataset(plain, rare, 100)).endswith("2 classes, imbalanced")


def test_traits_come_from_public_rows_alone():
    rng = np.random.default_rng(0)
    inputs, target = rng.normal(size=(200, 5)), rng.normal(size=200)
    changed = target.copy()
    changed[100:] = np.exp(5 * target[100:])
    inputs_changed = inputs.copy()
    inputs_changed[100:] = np.nan
    assert describe("tabular", "rmse", Dataset(inputs, target, 100)) == describe(
        "tabular", "rmse", Dataset(inputs_changed, changed, 100)
    )
