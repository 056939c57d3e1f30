"""The folder of a search's result, written from made-up nodes: by several processes, and with nothing better found."""

import os
import shutil
import subprocess
import sys
import threading
import types

import pytest

from environments.protocol import Outcome, OutcomeKind, Scale, State
from environments.seeds import execution_seed
from mlagent_jax.search import result
from mlagent_jax.search.tree import Plan, Result, Tree

SCALE = Scale(m_init=0.5, m_best=0.9, higher_is_better=True)
SCRIPT = "open('submission.csv', 'w').write('id,value\\n0,1\\n')\n"


class Episode:
    """As much of an episode as its best script's folder needs."""

    spec = types.SimpleNamespace(entry="train.py", submission="submission.csv")

    def __init__(self, public):
        self.public = public
        public.mkdir()
        (public / "train.csv").write_text("x\n1\n")

    def export(self, snapshot, folder):
        folder.mkdir()
        (folder / "train.py").write_text(snapshot)

    def submission(self, identity):
        return b"id,value\n0,1\n"

    start_submission = b"id,value\n0,1\n"


def tree_of(*scripts):
    tree = Tree(State("t@1", (), SCRIPT, SCRIPT, 0.5), SCALE)
    for number, script in enumerate(scripts, 1):
        outcome = Outcome(OutcomeKind.SCORED, "", script, script, 0.5, 0.6, SCALE, 0.5, submission="s")
        tree.add(number, Plan("draft", 0), Result("a", outcome), 0.0, 1.0)
    return tree


def test_processes_that_share_a_folder_write_the_best_one_after_the_other(tmp_path):
    episode, failures = Episode(tmp_path / "public"), []
    sys_interval = sys.getswitchinterval()

    def write(script):
        try:
            for _ in range(15):
                result.write_best(tmp_path / "out", episode, tree_of(script), 0)
        except OSError as error:
            failures.append(error)

    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=write, args=(SCRIPT + f"# {number}\n",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(sys_interval)
    assert failures == []
    assert (tmp_path / "out" / "best" / "train.py").read_text().startswith(SCRIPT)
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize("kept", [True, False])
def test_a_starting_script_that_stays_the_best_can_be_reproduced(tmp_path, kept):
    episode = Episode(tmp_path / "public")
    if not kept:
        episode.start_submission = None
    result.write_best(tmp_path / "out", episode, tree_of(), 7)
    assert f"SEED = {execution_seed(0)}\n" in (tmp_path / "out" / "reproduce.py").read_text()
    assert (tmp_path / "out" / "submission.csv").exists() == kept
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [sys.executable, "reproduce.py"]
    done = subprocess.run(program, cwd=tmp_path / "out", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("gives the submission" if kept else "no submission to compare with") in done.stdout


def test_data_whose_copy_was_cut_short_are_copied_again(tmp_path, monkeypatch):
    episode = Episode(tmp_path / "public")

    def cut(source, place, **options):
        (place / "part").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", cut)
        with pytest.raises(KeyboardInterrupt):
            result.write_best(tmp_path / "out", episode, tree_of(), 0)
    result.write_best(tmp_path / "out", episode, tree_of(), 0)
    assert (tmp_path / "out" / "data" / "train.csv").exists()
