"""The library of ideas: enough for every task, in few words, one runnable cell each, none that changes nothing."""

from __future__ import annotations

import ast

import pytest

from environments import tasks
from environments.actions.edits import read_cells, replace_cell
from environments.tasks.generated import micro
from environments.tasks.generated.ideas import candidates_for, ideas_for, library, variations
from environments.tasks.generated.scripts import CELLS

ALL = [*tasks.names(), *micro.names("train", 18, 0), *micro.names("held_out", 8, 0)]


@pytest.mark.parametrize("name", ALL)
def test_every_task_has_many_ideas_over_several_cells(name):
    task = tasks.get(name)
    script = task.start.text()
    ideas = ideas_for(task.spec, script)
    assert len(ideas) >= 40
    assert len({idea.cell for idea in ideas}) >= 5 or task.spec.metric in (
        "accuracy",
        "auc",
        "macro_f1",
        "map_at_3",
        "pcc",
    )
    assert len({(idea.cell, idea.code) for idea in ideas}) == len(ideas)
    assert all(replace_cell(script, idea.cell, idea.code) != script for idea in ideas)


@pytest.mark.parametrize("name", ALL)
def test_there_are_a_hundred_candidates_for_every_task_that_tell_themselves_apart(name):
    task = tasks.get(name)
    script = task.start.text()
    found = candidates_for(task.spec, script)
    assert len(found) >= 100
    assert found[: len(ideas_for(task.spec, script))] == ideas_for(task.spec, script)
    assert len({(idea.cell, idea.code) for idea in found}) == len({idea.text for idea in found}) == len(found)


def test_ideas_are_short():
    for idea in (*library(), *variations()):
        assert len(idea.text.split()) <= 8, idea
        assert idea.cell in CELLS and len(idea.code.splitlines()) <= 4, idea
        assert len(idea.code) <= 200, idea
        ast.parse(idea.code)


def test_texts_tell_ideas_apart_within_a_task():
    for name in ALL:
        task = tasks.get(name)
        ideas = ideas_for(task.spec, task.start.text())
        assert len({idea.text for idea in ideas}) == len(ideas), name


def test_an_idea_that_is_in_the_script_already_is_not_offered():
    task = tasks.get("diabetes")
    script = task.start.text()
    idea = next(idea for idea in ideas_for(task.spec, script) if idea.cell == "model")
    changed = replace_cell(script, "model", idea.code)
    offered = ideas_for(task.spec, changed)
    assert idea not in offered
    assert all(read_cells(changed)[other.cell] != other.code for other in offered)
