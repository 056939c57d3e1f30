"""No policy that does nothing useful earns more than an honest attempt that fails to gain, in real steps."""

import contextlib
import statistics

import needs
import pytest

from environments import tasks
from environments.files.blobs import open_store
from environments.rewards import compute
from environments.step import Environment
from tools import degenerate_policies as tool


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("degenerate")
    with contextlib.closing(needs.sandbox("bubblewrap")) as sandbox:
        task = tasks.prepare("iris", root, 0, sandbox)
        with contextlib.closing(Environment(root, sandbox, open_store(root / "store"))) as environment:
            return list(tool.play(environment, task, ideas=8, steps=2))


@pytest.mark.parametrize("reward", ["improvement", "improvement:neutral=0.1", "staged"])
def test_ours_pays_none_of_them_more_than_an_honest_attempt_that_fails_to_gain(found, reward):
    paid = tool.means(found, reward)
    assert set(paid) == {tool.HONEST, tool.GAINED, "always the same edit", *tool.DEGENERATE}
    assert [name for name in paid if name != tool.GAINED and paid[name] > paid[tool.HONEST]] == []
    assert paid[tool.GAINED] > 0.5


def test_every_kind_of_step_that_changes_nothing_has_one_value(found):
    still = [name for name in tool.DEGENERATE if name != "always waits for the time limit"]
    values = {compute("improvement", outcome) for name, outcome in found if name in still}
    assert values == {0.1}
    assert tool.means(found, "improvement")["always waits for the time limit"] == 0.05


def test_the_papers_rewards_pay_them_as_published(found):
    assert tool.means(found, "paper_v1")["always looks"] == 0.5
    assert tool.means(found, "paper_v1")["always waits for the time limit"] == 0.5
    assert tool.means(found, "paper_v2")["always looks"] == 0.0
    text = tool.table(found, ("improvement", "paper_v1"))
    assert "improvement: none earns more" in text
    assert "always waits for the time limit" in text.partition("paper_v1: ")[2]


def test_the_table_counts_steps_and_means(found):
    text = tool.table(found, ("improvement",))
    mean = statistics.mean(compute("improvement", outcome) for name, outcome in found if name == "always looks")
    assert f"| always looks | 2 | {mean:.3f} |" in text
