"""The line between the halves: a CPU host installs and works without the accelerator half."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ACCELERATOR = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch", "mlagent_jax"}


def told(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_who_only_names_tasks_does_not_wait_for_scikit_learn():
    assert told("import sys, environments.tasks; print({'sklearn', 'scipy'} & {*sys.modules})") == "set()"


def test_programs_that_tests_start_have_no_torch_as_no_user_has():
    assert told("import importlib.util; print(importlib.util.find_spec('torch'))") == "None"


PROGRAM = """
import importlib.util, json, pathlib, sys
for name in ("jax", "flax", "optax", "transformers"):
    assert importlib.util.find_spec(name) is None, name
from environments import tasks
from environments.step import initial_state
from environments.protocol import Job
from environments.queue import open_queue
from environments.sandbox import open_sandbox
from environments.files.blobs import open_store
from environments.worker.supervision import start_workers

root = pathlib.Path(sys.argv[1])
sandbox = open_sandbox("bubblewrap")
task = tasks.prepare("micro-rings-0", root / "tasks", 0, sandbox)
sandbox.close()
store = open_store(root / "store")
url = f"sqlite:///{root}/queue.db"
queue = open_queue(url, store=store)
action = 'Action: Edit Script (Cell)\\nAction Input: {"script_name": "train.py", "cell": "model"}\\n```python\\n' \\
    'from sklearn.svm import SVC\\nmodel = SVC(probability=True)\\n```'
job = Job("test", 0, initial_state(task, store), 0, action)
queue.enqueue([job])
workers = start_workers(url, root / "tasks", str(root / "store"), "bubblewrap", 1, root / "worker.log")
outcome = queue.wait([job.id], timeout_seconds=120)[job.id]
workers.stop()
print(json.dumps(outcome.to_dict()))
"""


@pytest.mark.slow
def test_a_worker_without_jax_runs_a_job(tmp_path):
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    quiet = {"check": True, "capture_output": True, "text": True}
    # A copy: building in the checkout would leave files in it.
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "source")], **quiet)
    # By the pip that is here: one of its own would be unpacked first.
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "-c", "constraints.txt", "."]
    subprocess.run(install, cwd=tmp_path / "source", **quiet)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(python), "-c", PROGRAM, str(tmp_path)], cwd=tmp_path, env=environment, timeout=300, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr + (tmp_path / "worker.log").read_text()[-2000:]
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome["kind"] == "scored"
    assert 0.0 < outcome["reward"] <= 1.0
