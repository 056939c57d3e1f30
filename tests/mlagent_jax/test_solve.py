"""An agent on a person's own task: what it did is shown and kept, and bad input is an error in one line."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import environments
from mlagent_jax import solve
from mlagent_jax.agents.episodes import Agent, Reply

ROOT = Path(__file__).parents[2]
RENTS = ROOT / "docs" / "examples" / "rents"


def command(*arguments):
    program = [sys.executable, "-m", "mlagent_jax.solve", *map(str, arguments)]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_best_script_its_scores_and_the_difference_are_left(tmp_path):
    data = (
        'import pandas as pd\n\ntrain, test = pd.read_csv("data/train.csv"), pd.read_csv("data/test.csv")\n'
        'columns = [c for c in train.select_dtypes("number").columns if c in test.columns and c != "id"]\n'
    )
    edit = json.dumps({"script_name": "train.py", "cell": "data"})
    replies = [
        "no action at all\x1b[31m [bold]",
        f"Action: Edit Script (Cell)\nAction Input: {edit}\n```python\n{data}```",
        'Action: List Files\nAction Input: {"dir_path": "."}',
    ]

    class Scripted(Agent):
        def act(self, trajectories, depth):
            return [Reply(replies[depth]) for _ in trajectories]

    shown = io.StringIO()
    with environments.make(str(RENTS), cache_dir=tmp_path / "cache", max_steps=3) as episode:
        solution = solve.solve(episode, Scripted(), 1, Console(file=shown))
        solve.save(solution, "train.py", episode.spec.metric, tmp_path / "solved")
    kinds = [step["outcome"]["kind"] for step in solution.steps]
    assert kinds == ["invalid_action", "scored", "no_edit"]
    assert "\x1b[31m" not in shown.getvalue()
    assert "[bold]" in shown.getvalue()
    scores = json.loads((tmp_path / "solved" / "score.json").read_text())
    assert (tmp_path / "solved" / "train.py").read_text() == solution.script
    assert len((tmp_path / "solved" / "steps.jsonl").read_text().splitlines()) == len(kinds)
    assert scores["improved"]
    assert scores["score"] < scores["start_score"]
    assert scores["report_score"] < scores["start_report_score"]
    assert "+++ best/train.py" in (tmp_path / "solved" / "solution.diff").read_text()


@pytest.mark.slow
def test_a_tiny_checkpoint_works_on_a_folder(speaker, tmp_path):
    done = command(
        *(f"--checkpoint={speaker}", f"--task={RENTS}", f"--output={tmp_path / 'out'}", "--steps=2"),
        *(f"--cache_dir={tmp_path / 'cache'}", "--profile=compact", "--sandbox=bubblewrap"),
    )
    assert done.returncode == 0, done.stderr
    assert "step 1: invalid_action" in done.stdout
    assert "nothing better was found" in " ".join(done.stdout.split())
    assert (tmp_path / "out" / "train.py").read_text() == (RENTS / "env" / "train.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=/no/such", f"--task={RENTS}"], "does not exist"),
        (["--checkpoint=/no/such", "--task=./no-such-task"], "no-such-task"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
