"""Blends of submissions, against plain loops, and which scripts are blended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from environments.protocol import Outcome, OutcomeKind, Scale, State
from environments.tasks.grading import metrics
from environments.tasks.grading.submissions import Answers
from mlagent_jax.search import ensemble
from mlagent_jax.search.blend import blend
from mlagent_jax.search.tree import Plan, Result, Tree

ROWS = 200
SCALE = Scale(m_init=1.0, m_best=0.0, higher_is_better=False)


def test_numbers_are_averaged_by_weight_and_other_columns_take_the_majority():
    tables = ["id,p,label\n1,0.5,2\n2,1,3\n", "id,p,label\n2,0,4\n1,1.5,7\n"]
    assert blend(tables, [3, 1], ["p"]) == "id,p,label\n1,0.75,2\n2,0.75,3\n"
    assert blend(tables, [1, 2], ["p"]).splitlines()[2].endswith(",4")
    with pytest.raises(ValueError, match="differ"):
        blend(["id,p\n1,2\n", "id,p\n2,2\n"], [1, 1], ["p"])


class Episode:
    """As much of an episode as an ensemble uses."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.answers = Answers(metrics.get("rmse"), 0, rng.normal(size=ROWS), rng.random(ROWS) < 0.5)
        self.kinds = self.answers.kinds
        self.store, self.blobs = self, {}

    def put(self, data):
        self.blobs[name := str(len(self.blobs))] = data
        return name

    def submission(self, name):
        return self.blobs[name]

    def reward_score(self, name):
        return self.answers.grade(self.blobs[name], "reward")


def tree_of(episode, predictions, before="", after=""):
    tree = Tree(State("t@1", (), "s", "start", 1.0), SCALE)
    for number, values in enumerate(predictions, 1):
        rows = "".join(f"{row},{value!r}\n" for row, value in enumerate(values.tolist()))
        name = episode.put((before + "id,value\n" + rows + after).encode())
        score = episode.reward_score(name)
        outcome = Outcome(OutcomeKind.SCORED, "", "s", str(number), 1.0, score, SCALE, 0.5, submission=name)
        tree.add(number, Plan("draft", 0), Result("a", outcome), 0.0, 1.0)
    return tree


def test_scripts_whose_errors_cancel_are_chosen_and_the_blend_is_better():
    episode, rng = Episode(), np.random.default_rng(1)
    error = rng.normal(scale=0.4, size=ROWS)
    truth = episode.answers.truth
    tree = tree_of(episode, [truth + error, truth - error, truth + rng.normal(scale=0.9, size=ROWS)])
    counts, submission = ensemble.choose(episode, tree, 4)
    assert counts == {1: 1, 2: 1}
    assert episode.reward_score(submission) < 1e-6


def test_blank_lines_and_a_byte_order_mark_which_graders_accept_do_not_stop_a_blend():
    episode = Episode()
    error = np.random.default_rng(1).normal(scale=0.4, size=ROWS)
    tree = tree_of(episode, [episode.answers.truth + error, episode.answers.truth - error], "\ufeff", "\n")
    counts, submission = ensemble.choose(episode, tree, 2)
    assert counts == {1: 1, 2: 1}
    assert episode.reward_score(submission) < 1e-6


def test_no_ensemble_is_made_where_the_best_script_is_better_or_submissions_cannot_be_blended():
    episode, rng = Episode(), np.random.default_rng(1)
    truth = episode.answers.truth
    worse = truth + rng.normal(scale=0.9, size=ROWS)
    assert ensemble.choose(episode, tree_of(episode, [truth, worse]), 4) is None
    tree = tree_of(episode, [truth + 0.5, truth - 0.5])
    episode.kinds = {}
    assert ensemble.choose(episode, tree, 4) is None


def test_the_program_of_an_ensemble_runs_its_scripts_and_blends_them(tmp_path):
    """With plain Python: nothing of this package is found."""
    from mlagent_jax.search import blend as module

    for name, value in (("1", 2), ("4", 5)):
        member = tmp_path / "ensemble" / "members" / name
        member.mkdir(parents=True)
        (member / "train.py").write_text(
            f"import os\nvalue = {value} + int(os.environ['MORE'])\n"
            "open('submission.csv', 'w').write(f'id,value\\n7,{value}\\n')\n"
            "assert open('data/known').read() == 'yes'\n"
        )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "known").write_text("yes")
    plan = {"entry": "train.py", "submission": "submission.csv", "seed": 3, "environment": {"MORE": "1"}}
    plan |= {"means": ["value"], "members": {"1": 2, "4": 1}}
    (tmp_path / "ensemble" / "members.json").write_text(json.dumps(plan))
    program = tmp_path / "ensemble" / "blend.py"
    program.write_text(Path(module.__file__).read_text())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ensemble" / "submission.csv").read_text() == "id,value\n7,4.0\n"
