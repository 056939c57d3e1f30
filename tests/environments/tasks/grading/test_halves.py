"""The halves of hidden rows are drawn in one way, whoever draws them."""

import numpy as np
import pytest

from environments.tasks.folders import splits
from environments.tasks.grading.halves import report_half


@pytest.mark.parametrize(("rows", "seed"), [(2, 0), (7, 3), (200, 41)])
def test_rows_without_groups_are_halved_as_those_of_generated_tasks(rows, seed):
    report = report_half(rows, seed)
    assert report.sum() == -(-rows // 2)
    np.testing.assert_array_equal(splits.halves(range(rows), seed) == "report", report)


def test_rows_of_a_group_are_in_one_half():
    groups = ["a", "b", "a", "c", "b", "c"]
    halves = dict(zip(groups, splits.halves(groups, 5), strict=True))
    assert list(splits.halves(groups, 5)) == [halves[group] for group in groups]
    assert set(halves.values()) == {"reward", "report"}
