"""Planted leaks are found where they lie, and what is no leak is passed: all without a sandbox."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import os
import sqlite3
import zipfile

import numpy as np
import pandas as pd
import pytest

from environments import tasks
from environments.protocol import Scale
from environments.tasks.check import examination
from environments.tasks.check.examination import examine
from environments.tasks.check.search import find, hidden_labels
from environments.tasks.check.tables import read_bytes
from environments.tasks.generated.dataset import Dataset
from environments.tasks.prepared import FolderTask

HISTORY = 24


def built(recipe, folder, reference):
    """The task of `recipe` for seed 0, with the reference's score on both halves given."""
    folder.mkdir()
    spec = recipe.build(folder, 0)
    worse = 0.0 if spec.higher_is_better else 2 * reference + 1
    scale = Scale(worse, reference, spec.higher_is_better)
    return FolderTask(f"{spec.name}@0", spec, scale, scale, folder)


def with_data(name, data):
    return dataclasses.replace(tasks.get(name), data=data)


def public_table(task, name):
    return pd.read_csv(task.public / f"{name}.csv")


def columns(rng, rows=900, width=5):
    """Inputs, and targets that follow from them but for noise."""
    inputs = rng.normal(size=(rows, width))
    return inputs, 100 + 10 * inputs @ np.arange(1, width + 1) + 20 * rng.normal(size=rows)


@pytest.fixture
def numbers(tmp_path):
    """A tabular regression of 300 public and 600 hidden rows, whose reference has an error of 20."""

    def data(rng):
        return Dataset(*columns(rng), 300)

    return built(with_data("diabetes", data), tmp_path / "numbers", 20.0)


@pytest.fixture
def rents_task(rents, tmp_path):
    return lambda: built(tasks.get(str(rents)), tmp_path / "built", 0.12)


def truth(task):
    return np.array([float(cell) for cell in task.grader.labels()["y0"]])


def test_what_is_no_leak_is_passed(numbers):
    found = examine(numbers)
    assert found.leaks == () and found.shortcuts == ()
    assert any("nearest public row" in name for name in found.tried)
    assert any("mean of the public labels" in name for name in found.tried)


@pytest.mark.parametrize("name", ["energy-demand", "bike-rental", "digits-denoise", "micro-communities-0", "essays"])
def test_our_tasks_show_no_labels(name, tmp_path):
    reference = {"essays": 0.73, "micro-communities-0": 0.95, "bike-rental": 0.4627, "energy-demand": 3.85}.get(
        name, 3.2
    )
    found = examine(built(tasks.get(name), tmp_path / "built", reference))
    assert found.leaks == () and found.shortcuts == ()


def test_the_example_shows_no_labels(rents_task):
    found = examine(rents_task())
    assert found.leaks == () and found.shortcuts == ()


# The leaks. --------------------------------------------------------------------------------------------------------


def test_1_windows_of_one_series_are_found_that_hold_the_target_of_the_row_before(tmp_path):
    """The series as they were: hidden rows are consecutive windows."""

    def data(rng):
        time = np.arange(HISTORY + 1100)
        values = 50 + 10 * np.sin(2 * np.pi * time / 12) + 3 * rng.normal(size=len(time))
        windows = np.lib.stride_tricks.sliding_window_view(values[:-1], HISTORY)
        return Dataset(np.column_stack([time[HISTORY:], windows]), values[HISTORY:], 300, period=12)

    task = built(with_data("energy-demand", data), tmp_path / "built", 3.2)
    found = examine(task)
    (leak,) = [leak for leak in found.leaks if leak.startswith("data/test.csv")]
    assert ("column 'c" in leak and ", row 2" in leak) or ", row 3" in leak
    assert any("+1 rows, as it is beats the reference" in name for name in found.shortcuts), found.shortcuts


@pytest.mark.parametrize("digits", [0, 1, -1])
def test_2_rounded_labels_are_found(numbers, digits):
    table = public_table(numbers, "test").assign(hint=np.round(truth(numbers), digits))
    table.to_csv(numbers.public / "test.csv", index=False)
    found = examine(numbers)
    if digits < 0:  # Tens are another number; they are told by what they are worth.
        assert any("column 'hint', as it is" in name for name in found.shortcuts), found
    else:
        (leak,) = found.leaks
        assert leak.startswith("data/test.csv: column 'hint', row 2: is y0 of hidden row 1 (600 of 600")


def test_3_labels_of_some_rows_are_found_by_their_ids(numbers):
    values = truth(numbers)
    rows = np.random.default_rng(0).permutation(600)[:30]
    text = "Export of 3 May\nnote;label;row\n" + "".join(f"caf\xe9;{values[row]:.2f};{row}\n" for row in rows) + "\n"
    (numbers.public / "notes.txt").write_bytes(text.encode("latin-1"))
    (leak,) = examine(numbers).leaks
    assert leak.startswith(
        f"data/notes.txt: column 'label', row 3: is y0 of hidden row {rows[0] + 1}, by the ids in 'row'"
    )


def test_3_labels_of_some_rows_are_found_between_empty_cells(numbers):
    hint = np.where(np.arange(600) % 9 == 4, np.round(truth(numbers), 3).astype(str), "")
    public_table(numbers, "test").assign(hint=hint).to_csv(numbers.public / "test.csv", index=False)
    (leak,) = examine(numbers).leaks
    assert "column 'hint', row 6: is y0 of hidden row 5" in leak


def test_4_rows_in_the_order_of_their_labels_are_found(tmp_path):
    def data(rng):
        inputs, targets = columns(rng)
        order = np.concatenate([np.arange(300), 300 + np.argsort(targets[300:])])
        return Dataset(inputs[order], targets[order], 300)

    found = examine(built(with_data("diabetes", data), tmp_path / "built", 20.0))
    assert any("sorted, along the hidden rows in their order beats" in name for name in found.shortcuts)


def test_5_hidden_rows_that_are_public_rows_once_more_are_found(tmp_path):
    def data(rng):
        inputs, targets = columns(rng)
        twins = rng.permutation(300)[:60]
        inputs[400:460], targets[400:460] = inputs[twins] * (1 + 1e-4), targets[twins]
        return Dataset(inputs, targets, 300)

    found = examine(built(with_data("diabetes", data), tmp_path / "built", 20.0))
    assert any("hidden row 101 is public row" in leak and "60 of 600" in leak for leak in found.leaks)


@pytest.mark.parametrize("what", ["size", "order of times"])
def test_6_files_whose_sizes_or_times_tell_the_label_are_found(numbers, what):
    folder = numbers.public / "scans"
    folder.mkdir()
    for row, value in enumerate(truth(numbers)):
        path = folder / f"{row}.raw"
        path.write_bytes(b"\0" * (int(1000 + 5 * value) if what == "size" else 100))
        os.utime(path, (0, 1e6 + (value if what == "order of times" else 0)))
    (shortcut,) = examine(numbers).shortcuts
    assert shortcut == f"the list of files in data: column {what!r}, by its order beats the reference"


def test_7_ids_that_were_given_by_label_are_found(rents, rents_task):
    with (rents / "prepare.py").open("a") as file:
        file.write(
            "\n\n_prepare = prepare\n\n\ndef prepare(raw, public, private, seed):\n"
            "    _prepare(raw, public, private, seed)\n"
            "    parts = [public / 'train.csv', public / 'test.csv', private / 'answers.csv']\n"
            "    train, test, answers = map(pd.read_csv, parts)\n"
            "    rents = pd.concat([train['rent'], answers['rent']], ignore_index=True)\n"
            "    ids = rents.rank(method='first').astype(int).to_numpy()\n"
            "    train['id'], test['id'], answers['id'] = ids[:len(train)], ids[len(train):], ids[len(train):]\n"
            "    for table, path in zip((train, test, answers), parts):\n"
            "        table.to_csv(path, index=False)\n"
        )
    found = examine(rents_task())
    assert any("nearest public number in 'id'" in name for name in found.shortcuts), found.shortcuts


def test_8_values_in_whatever_order_are_found(numbers):
    values = [f"{value:.3f}" for value in np.random.default_rng(1).permutation(truth(numbers))]
    (numbers.public / "prices.json").write_text(json.dumps({"shop": {"prices": values}}))
    (leak,) = examine(numbers).leaks
    assert leak.startswith("data/prices.json, shop: column 'prices', row ") and "of 600 hidden values" in leak


def test_9_a_code_of_the_classes_is_found(tmp_path):
    def data(rng):
        return Dataset(rng.normal(size=(900, 4)), rng.integers(3, size=900), 300)

    task = built(with_data("wine", data), tmp_path / "built", 0.3)
    code = np.array(["b", "c", "a"])[truth(task).astype(int)]
    public_table(task, "test").assign(source=code).to_csv(task.public / "test.csv", index=False)
    (leak,) = examine(task).leaks
    assert "column 'source', row 2: is a code of y0" in leak


# How a table may be written. -----------------------------------------------------------------------------------------

IDS = [str(number) for number in range(12)]
LABELS = ["low", "mid", "high", "mid"] * 3
ROWS = [(name, label) for name, label in zip(IDS, LABELS, strict=True)]
ROWS = ROWS[5:] + ROWS[:5]


def written(mark=",", note="a"):
    return f"id{mark}note{mark}label\n" + "".join(f"{name}{mark}{note}{mark}{label}\n" for name, label in ROWS)


def zipped(data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("all.csv", data)
    return stream.getvalue()


def database():
    connection = sqlite3.connect(":memory:")
    pd.DataFrame(ROWS, columns=["id", "label"]).to_sql("answers", connection, index=False)
    return connection.serialize()


def array():
    stream = io.BytesIO()
    np.save(stream, np.array(ROWS))
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        written().encode(),
        written().encode("utf-8-sig"),
        written(";").encode(),
        written("\t").encode(),
        written("|").encode(),
        written("   ").encode(),
        written(",", "caf\xe9").encode("latin-1"),
        written().encode("utf-16"),
        written().encode("utf-16-le"),
        written().encode("utf-32"),
        (written() + "\n").encode(),
        written().replace("\n", "\r\n").encode(),
        ("Export of 3 May\n" + written()).encode(),
        written(",", "z" * 140_000).encode(),
        written(",", '"two\nlines"').encode(),
        gzip.compress(written().encode(), mtime=0),
        bz2.compress(written().encode()),
        zipped(written()),
        zipped(gzip.compress(written().encode(), mtime=0)),
        json.dumps(dict(ROWS)).encode(),
        json.dumps([{"id": name, "label": label} for name, label in ROWS]).encode(),
        "".join(json.dumps({"id": name, "label": label}) + "\n" for name, label in ROWS).encode(),
        json.dumps({"id": [row[0] for row in ROWS], "label": [row[1] for row in ROWS]}).encode(),
        database(),
        array(),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_a_table_is_read_in_every_dialect_encoding_and_packing(data):
    hidden = hidden_labels({"id": IDS, "label": LABELS}, {})
    leak = next(find(read_bytes("data/all", data), hidden))
    assert leak.file.startswith("data/all") and "12 of 12" in leak.what and leak.row in (1, 2, 3)


@pytest.mark.parametrize(
    "data", [b"", b"\0\1\2\3" * 50, b"\xff" * 100, b"{", b"PK\x03\x04 broken", b"\x1f\x8b broken", b"\n\n"]
)
def test_a_file_that_is_no_table_is_passed_over(data):
    assert list(find(read_bytes("data/x", data), hidden_labels({"id": IDS, "label": LABELS}, {}))) == []


def test_labels_of_few_values_are_not_found_by_chance():
    """A column that is right for two of three rows, and one that is right by chance, are no leak."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    good = np.where(rng.random(400) < 0.8, labels, 1 - labels)
    text = "id,good,noise\n" + "".join(f"{row},{good[row]},{rng.integers(2)}\n" for row in range(400))
    hidden = hidden_labels({"id": list(map(str, range(400))), "y": list(map(str, labels))}, {})
    assert list(find(read_bytes("data/test.csv", text.encode()), hidden)) == []


def test_round_prices_that_public_rows_have_as_well_are_no_leak():
    """Values that are common to public and hidden rows are found by chance, however rare they look."""
    rng = np.random.default_rng(0)
    prices = (rng.integers(50, 500, size=800) * 1000).astype(str)
    text = "area,price\n" + "".join(f"{rng.integers(40, 200)},{price}\n" for price in prices[:600])
    hidden = hidden_labels({"id": list(map(str, range(200))), "price": list(prices[600:])}, {"price": prices[:600]})
    assert hidden[0].rare
    assert list(find(read_bytes("data/train.csv", text.encode()), hidden)) == []


def test_a_benchmark_whose_answers_only_its_grader_knows_is_passed(numbers, monkeypatch):
    monkeypatch.setattr(type(numbers.grader), "labels", lambda self: {"id": []})
    assert examine(numbers) == examination.Examination((), (), 0, ())


def test_preparing_a_task_of_ones_own_warns_of_its_labels_by_file_column_and_row(rents, tmp_path, bubblewrap, caplog):
    with (rents / "prepare.py").open("a") as file:
        file.write("    test.assign(note=test['rent'].round(1)).to_csv(public / 'notes.csv', index=False)\n")
    for _ in range(2):  # once examined, and then remembered
        caplog.clear()
        tasks.prepare(str(rents), tmp_path / "tasks", 0, bubblewrap)
        assert "task rents: data/notes.csv: column 'rent', row 2: is rent of hidden row 1" in caplog.text
