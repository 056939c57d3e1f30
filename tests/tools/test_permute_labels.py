"""The control with permuted labels: rewards become chance, what is reported stays true."""

import numpy as np
import pytest

from environments import tasks
from tools.permute_labels import permute


@pytest.fixture(scope="module")
def pair(tmp_path_factory, bubblewrap):
    """A prepared task and its permuted copy."""
    task = tasks.prepare("wine", tmp_path_factory.mktemp("true"), 0, bubblewrap)
    return task, permute(task, tmp_path_factory.mktemp("permuted"), seed=3, sandbox=bubblewrap)


def test_only_the_reward_half_is_permuted(pair):
    true, permuted = (task.grader for task in pair)
    assert np.array_equal(true.truth[true.report], permuted.truth[true.report])
    before, after = true.truth[~true.report], permuted.truth[~true.report]
    assert not np.array_equal(before, after)
    assert np.array_equal(np.sort(before), np.sort(after))


def test_its_scale_starts_at_chance_and_keeps_the_true_gap(pair):
    task, permuted = pair
    assert permuted.key == task.key
    assert permuted.scale.m_init > np.log(3)  # log loss of three classes: worse than knowing nothing
    assert permuted.scale.gap == pytest.approx(task.scale.gap)
    assert permuted.report_scale == task.report_scale
