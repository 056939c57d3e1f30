"""The page of a search in a real Chromium: it draws the tree, shows a chosen node, and runs nothing hostile."""

import dataclasses

import needs
import pytest

from environments.protocol import OutcomeKind, Scale, State
from mlagent_jax.search.page import write_page
from mlagent_jax.search.tree import Plan, Result, Tree

from .chromium import PROGRAM, Browser
from .conftest import make_outcome

pytestmark = pytest.mark.slow
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


def test_a_node_is_chosen_and_its_texts_are_shown_as_text(tmp_path):
    needs.need(PROGRAM, "no Chromium: install it (Debian: apt-get install chromium)")
    tree = Tree(State("wine@1", (), "s", "x = 1", 0.5), Scale(0.5, 0.9, True))
    scored = dataclasses.replace(
        make_outcome(OutcomeKind.SCORED), metric_after=0.8, observation=HOSTILE, diff=f"-a\n+{HOSTILE}"
    )
    failed = dataclasses.replace(scored, kind=OutcomeKind.SCRIPT_ERROR, metric_after=None, reason=HOSTILE)
    tree.add(1, Plan("draft", 0), Result(HOSTILE, failed), 0.0, 1.0)
    tree.add(2, Plan("debug", 1), Result("repair", scored), 1.0, 2.0)
    tree.add(3, Plan("combine", 2, 0), None, 2.0, None)
    story = {"task": HOSTILE, "metric": "auc", "warning": HOSTILE, "lines": [HOSTILE]}
    write_page(tmp_path / "page.html", tree, story)
    with Browser() as page:
        page.open(tmp_path / "page.html")
        assert page.run("document.querySelectorAll('#tree button').length") == 4
        assert page.run("document.querySelector('#node h2').textContent") == "Node 2: debug of 1"
        page.run("document.querySelectorAll('#tree button')[1].click()")
        assert page.run("document.querySelector('#node h2').textContent") == "Node 1: draft of 0"
        assert page.run("document.querySelector('#node .added').textContent") == f"+{HOSTILE}\n"
        assert page.run("document.querySelector('#node').textContent").count("onerror") >= 4
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.title") == f"Search: {HOSTILE}"
        assert not page.run("/NaN/.test(document.querySelector('polyline').getAttribute('points'))")
        assert page.errors == []
