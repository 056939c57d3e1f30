"""Tables made to mislead or to break: the order of rows, pickles that lie about sizes, files larger than they look."""

import io
import json
import lzma
import pickle
import sys
import types
import zipfile

import needs
import numpy as np
import pandas as pd
import pytest

from environments.factory import reading
from environments.factory.choices import Wishes, choose
from environments.factory.profile import column
from environments.factory.reading import RefusalError, find_column, from_frame, read, read_delimited
from environments.factory.sources.base import Candidate
from environments.factory.sources.licenses import R_PACKAGES
from environments.factory.sources.packages import read_frame
from environments.factory.suite import building
from environments.factory.suite.references import read_suite
from environments.interfaces.command_line import main
from environments.tasks.folders.tables import split_table
from environments.tasks.task import TaskError


def test_the_place_of_a_row_within_its_time_tells_nothing():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"year": np.repeat(np.arange(1990, 2020), 40), "size": rng.normal(size=1200)})
    table["sold"] = 100.0 - np.tile(np.arange(40), 30) + rng.normal(size=1200)  # sorted by year and rank
    plan = choose(from_frame(table), Wishes("sold"))
    assert plan.split == "time"
    for part in split_table(plan.table.astype(str), plan.to_dict(), seed=0)[:2]:
        rank = part.groupby("year").cumcount()
        assert abs(np.corrcoef(rank, part["y0"].astype(float))[0, 1]) < 0.15


def dumped(table, change):
    """A pickle as pandas writes it, whose arrays are what `change` makes of them."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            return change(value) if isinstance(value, np.ndarray) else NotImplemented

    file = io.BytesIO()
    Pickler(file, protocol=5).dump(table)
    return file.getvalue()


def test_a_pickled_frame_is_read_and_one_that_lies_about_its_arrays_is_refused(houses):
    houses = houses.astype({name: object for name in ("kind", "age")}).set_axis(
        pd.Index(list(houses), dtype=object), axis=1
    )
    assert from_frame(read_frame(pickle.dumps(houses))).cells.equals(from_frame(houses).cells)

    def addresses(array):
        return np.ndarray, (array.shape, np.dtype("O"), b"A" * 8 * array.size)

    def short(array):
        lists = array.dtype == object
        state = (1, array.shape, array.dtype, False, ["a"] if lists else b"A" * 8)
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state

    for change, reason in {addresses: "ndarray in place of an array", short: "cannot reshape"}.items():
        with pytest.raises(RefusalError, match=reason):
            read_frame(dumped(houses, change))


def test_a_package_of_the_lesser_license_is_recorded_as_such():
    assert R_PACKAGES["survival"] == "LGPL (>= 2)"


@pytest.mark.parametrize("error", [KeyError("data"), AttributeError("get"), lzma.LZMAError("damaged")])
def test_a_source_that_fails_on_one_table_ends_no_build(error):
    def fail(candidate):
        raise error

    looked = building._look(types.SimpleNamespace(read=fail), Candidate("shop/odd", "", "MIT"))
    assert looked.reason.startswith(f"unreadable: {type(error).__name__}")


def test_two_builds_do_not_write_one_log_and_a_broken_log_is_named(tmp_path):
    with building._Log(tmp_path, {"seed": 0}), pytest.raises(TaskError, match="another build"):
        building._Log(tmp_path, {"seed": 0})
    building._Log(tmp_path, {"seed": 0})
    (tmp_path / "log.jsonl").write_text('{"see')
    with pytest.raises(TaskError, match=r"first line of .* is broken"):
        building._Log(tmp_path, {"seed": 0})
    (tmp_path / "suite.jsonl").write_text(json.dumps({"name": 5, "place": 5}))
    with pytest.raises(TaskError, match="is broken"):
        read_suite(tmp_path)


def test_a_packed_file_of_many_cells_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    def parsed(*_):
        raise AssertionError("it was parsed")

    many = pd.DataFrame(np.zeros((3000, 10), int)).set_axis(list("abcdefghij"), axis=1)
    many.to_parquet(tmp_path / "table.parquet")
    with zipfile.ZipFile(tmp_path / "table.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b"0" * (1 << 20))
    monkeypatch.setattr(reading, "MOST_CELLS", 20_000)
    monkeypatch.setattr(reading, "LARGEST", 1 << 19)
    monkeypatch.setattr(pd, "read_parquet", parsed)
    monkeypatch.setattr(pd, "read_excel", parsed)
    monkeypatch.setitem(sys.modules, "openpyxl", types.ModuleType("openpyxl"))
    for name, reason in (("table.parquet", "too large"), ("table.xlsx", "unpacks to more")):
        with pytest.raises(RefusalError, match=reason):
            read(tmp_path / name)
    monkeypatch.setattr(reading, "table_of", parsed)
    with pytest.raises(RefusalError, match="more than 20000 cells"):
        read_delimited(many.to_csv(index=False).encode(), "many.csv")


def test_images_of_one_name_in_two_folders_keep_their_own_pixels(tmp_path):
    image = needs.package("PIL.Image")
    for name, grey in {"cats/1.png": 0, "dogs/1.png": 200, "dogs/2.png": 100}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.new("L", (20, 20), grey).save(tmp_path / name)
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\ncats/1.png,cat\ndogs/1,dog\nall/dogs/2.png,dog\n2.png,dog\ncats/2.png,cat\n")
    raw = read(tmp_path, "label")
    assert raw.cells["p0"].tolist() == ["0", "200", "100", "100"]
    assert "1 images could not be read" in raw.notes
    labels.write_text("file,label\ncats/1.png,cat\n1.png,dog\n")
    with pytest.raises(RefusalError, match="write the folder too"):
        read(tmp_path, "label")


def test_equal_numbers_are_one_class():
    rng = np.random.default_rng(0)
    cells = pd.DataFrame({"size": rng.normal(size=200), "sick": [*["0", "1"] * 50, *["0.0", "1.0"] * 50]})
    assert choose(from_frame(cells), Wishes("sick")).classes == ("0", "1")
    cells["sick"] = cells["sick"].replace({"0.0": "0", "1": "1.5", "1.0": "1.50"})
    assert choose(from_frame(cells), Wishes("sick")).classes == ("0", "1.5")


def test_columns_keep_the_letters_of_any_script_and_are_found_by_their_names_in_the_file(tmp_path, capfd):
    prices = pd.DataFrame({"größe [m²]": range(60), "город": ["a", "b"] * 30, "цена": np.arange(60) ** 2 % 17})
    raw = read_delimited(prices.to_csv(index=False).encode(), "prices.csv")
    assert list(raw.cells) == ["größe m2", "город", "цена"]
    assert find_column(raw, "größe [m²]") == "größe m2" and find_column(raw, "size") == "size"
    prices.to_csv(tmp_path / "prices.csv", index=False)
    arguments = ["new", "prices", f"--data={tmp_path / 'prices.csv'}", f"--out={tmp_path / 'task'}", "--no-check"]
    assert main([*arguments, "--target="]) == 2
    assert "the table has no column ''" in capfd.readouterr().err
    assert main([*arguments, "--target=größe [m²]", "--metric=auc"]) == 2
    assert "no column" not in capfd.readouterr().err


def test_times_of_a_day_are_kept_and_sort_as_they_follow():
    cells = np.array(["2020-1-5 10:00", "2020-01-05T9:05", "2020-01-05", "2020-01-05 09:07:30"] * 20, dtype=object)
    found = column("when", cells)
    assert found.role == "date"
    assert found.cells[:4].tolist() == ["2020-01-05 10:00", "2020-01-05T09:05", "2020-01-05", "2020-01-05 09:07:30"]
