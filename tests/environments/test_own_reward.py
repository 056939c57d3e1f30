"""A reward of a user's own, as docs/add_a_reward.md writes it, from its file through a real worker process."""

import contextlib
import dataclasses
import importlib.metadata
import re
import sys
from pathlib import Path

import needs
import pytest

from environments import registry, tasks
from environments.files.blobs import open_store
from environments.protocol import Job, OutcomeKind
from environments.queue import open_queue
from environments.registry import PLUGINS_VARIABLE, RegistryError
from environments.rewards import REWARDS, compute, relative_delta
from environments.seeds import execution_seed
from environments.step import initial_state
from environments.worker.supervision import start_workers

PAGE = Path(__file__).parents[2] / "docs" / "add_a_reward.md"
SNIPPET = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
PATIENCE_SECONDS = 300.0


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The page's file, named to this process and to those that it starts; forgotten in the end."""
    path = tmp_path / "my_rewards.py"
    path.write_text(SNIPPET)
    monkeypatch.setattr(REWARDS, "_functions", dict(REWARDS._functions))
    monkeypatch.setenv(PLUGINS_VARIABLE, str(path))
    yield path
    for name in [name for name in sys.modules if name.startswith("mlagent_plugin_")]:
        del sys.modules[name]


def test_the_page_s_file_has_ten_lines_and_is_found_by_its_name(plugin):
    assert len([line for line in SNIPPET.splitlines() if line.strip()]) <= 10
    assert "frugal" in REWARDS.names()
    with pytest.raises(RegistryError, match=r"price is -1\.0; it must be at least 0"):
        REWARDS.choose("frugal:price=-1")


def test_a_worker_process_pays_it(plugin, tmp_path):
    with contextlib.closing(needs.sandbox("bubblewrap")) as sandbox:
        task = tasks.prepare("iris", tmp_path / "tasks", 0, sandbox)
    store = open_store(tmp_path / "store")
    state = initial_state(task, store)
    run = 'Action: Execute Script\nAction Input: {"script_name": "train.py"}\n'
    cell = 'Action: Edit Script (Cell)\nAction Input: {"script_name": "train.py", "cell": "predict"}\n'
    job = Job("run", 0, state, 0, run, reward="frugal:price=2", limits=task.spec.limits, seed=execution_seed(0))
    jobs = [
        job,
        dataclasses.replace(job, sample=1, action=f"{cell}```python\nsave(model, z)\n# a comment\n```\n"),
        dataclasses.replace(job, sample=2, reward="improvement:unchanged=0.2"),
    ]
    url = f"sqlite:///{tmp_path / 'queue.sqlite'}"
    with contextlib.closing(open_queue(url, store=store)) as queue:
        queue.enqueue(jobs)
        workers = start_workers(url, tmp_path / "tasks", str(tmp_path / "store"), "bubblewrap", 1, tmp_path / "log")
        try:
            found = queue.wait([job.id for job in jobs], PATIENCE_SECONDS)
        finally:
            workers.stop()
    again, comment, ours = (found[job.id] for job in jobs)
    assert again.kind is OutcomeKind.NO_EDIT and again.reward == pytest.approx(-1 - 2 * again.cpu_seconds)
    assert comment.kind is OutcomeKind.SCORED and comment.reward == pytest.approx(
        relative_delta(comment) - 2 * comment.cpu_seconds
    )
    assert ours.reward == 0.2
    assert compute("frugal:price=2", comment) == comment.reward


def test_an_installed_package_brings_one(monkeypatch, tmp_path):
    (tmp_path / "reward_package.py").write_text("def flat(outcome):\n    return 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(REWARDS, "_functions", dict(REWARDS._functions))
    point = importlib.metadata.EntryPoint("flat", "reward_package:flat", "mlagent_jax.rewards")
    monkeypatch.setattr(
        registry.importlib.metadata, "entry_points", lambda group: [point] if group == "mlagent_jax.rewards" else []
    )
    assert REWARDS.choose("flat")(None) == 0.25
