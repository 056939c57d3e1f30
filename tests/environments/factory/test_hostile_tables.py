"""Tables made to mislead or to break: the order of rows, pickles that lie about sizes, files larger than they look."""

import io
import json
import pickle
import types

import numpy as np
import pandas as pd
import pytest

from environments.factory.choices import Wishes, choose
from environments.factory.reading import RefusalError, from_frame
from environments.factory.sources.base import Candidate
from environments.factory.sources.licenses import R_PACKAGES
from environments.factory.sources.packages import read_frame
from environments.factory.suite import building
from environments.factory.suite.references import read_suite
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

    for change in (addresses, short):
        with pytest.raises(RefusalError, match="not a pickled data frame"):
            read_frame(dumped(houses, change))


def test_a_package_of_the_lesser_license_is_recorded_as_such():
    assert R_PACKAGES["survival"] == "LGPL (>= 2)"


@pytest.mark.parametrize("error", [KeyError("data"), AttributeError("get"), __import__("lzma").LZMAError("damaged")])
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
