"""Tasks and ideas for real, in a sandbox: every task has headroom, and nearly every idea runs."""

from __future__ import annotations

import random
from collections.abc import Iterator

import needs
import pytest

from environments import tasks
from environments.actions.edits import replace_cell
from environments.sandbox import Sandbox
from environments.tasks.check.examination import examine
from environments.tasks.generated import micro
from environments.tasks.generated.ideas import ideas_for
from environments.tasks.running import run_script
from tools.headroom import stability

FAMILIES = [*micro.family_names("train"), *micro.family_names("held_out")]
IDEAS_A_TASK = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    opened = needs.sandbox("bubblewrap")
    yield opened
    opened.close()


@pytest.mark.parametrize("name", [*tasks.names(), *(f"micro-{family}-0" for family in FAMILIES)])
def test_a_task_is_prepared_and_its_ideas_run(name, tmp_path, sandbox):
    task = tasks.prepare(name, tmp_path, 0, sandbox)
    for scale in (task.scale, task.report_scale):
        assert scale.delta(scale.m_init, scale.m_best) > 0
    assert_honest(task)
    ideas = random.Random(name).sample(ideas_for(task.spec, task.script), IDEAS_A_TASK)
    failed = {}
    for idea in ideas:
        script = replace_cell(task.script, idea.cell, idea.code)
        run = run_script(script, task.folder, task.spec, sandbox)
        execution, submission = run.execution, run.submission
        if execution.exit_code == 0:
            assert execution.stdout.startswith(f"validation {task.spec.metric} ")
            task.grade(submission), task.grade_report(submission)
        else:
            failed[idea.text] = execution.stderr
    assert len(failed) <= 1, failed


def assert_honest(task):
    """No public file shows a label, and nothing that needs no learning beats the reference."""
    found = examine(task)
    assert found.leaks == () and found.shortcuts == () and len(found.tried) >= 5


@pytest.mark.parametrize("name", [f"micro-{family}-{seed}" for family in FAMILIES for seed in (1, 2)])
def test_other_micro_tasks_show_no_labels(name, tmp_path, sandbox):
    assert_honest(tasks.prepare(name, tmp_path, 0, sandbox))


@pytest.mark.parametrize("name", tasks.names())
def test_the_metric_of_an_embedded_task_is_stable(name, tmp_path, sandbox):
    """Its standard error, by bootstrap over the reward half, is under a tenth of the gap."""
    task = tasks.prepare(name, tmp_path, 0, sandbox)
    assert stability(task, sandbox).standard_error < 0.1 * task.scale.gap


def test_the_same_script_scores_the_same_again(tmp_path, sandbox):
    task = tasks.prepare("breast-cancer", tmp_path, 0, sandbox)
    code = "from sklearn.ensemble import RandomForestClassifier\nmodel = RandomForestClassifier(n_estimators=5)"
    script = replace_cell(task.script, "model", code)
    first, second = (run_script(script, task.folder, task.spec, sandbox) for _ in range(2))
    assert first.submission == second.submission
