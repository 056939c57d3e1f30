"""A worker in real trouble: its disk is full, its image is gone, a snapshot is unreadable. Both engines.

What failed so is tried again after a backoff, then dead, masked out of the loss, and in the queue's status with its
reason; once the host is repaired, the run goes on.
"""

import contextlib
import threading

import fakes
import needs
import pytest
from queue_cases import fill

from environments.files.blobs import open_store
from environments.protocol import Job, OutcomeKind
from environments.queue import RetryPolicy
from environments.queue.base import Capabilities
from environments.step import Environment
from environments.worker.worker import Worker

PATIENCE_SECONDS = 300.0
ATTEMPTS = 2


@pytest.fixture
def queue(connect):
    return connect(retries=RetryPolicy(max_attempts=ATTEMPTS, backoff_seconds=0.05))


@contextlib.contextmanager
def working(queue, take):
    worker = Worker(queue, take, 1, Capabilities(), name="host")
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(PATIENCE_SECONDS)


def environment_of(tmp_path, monkeypatch, sandbox, scratch=None):
    task = fakes.fake_task(tmp_path / "task")
    monkeypatch.setattr("environments.step.open_task", lambda root, key: task)
    return Environment(tmp_path / "tasks", sandbox, open_store(tmp_path / "store"), scratch=scratch)


def edit(environment, guess):
    block = f"```python\nguess = {guess}\n```\n"
    action = f'Action: Edit Script (Cell)\nAction Input: {{"script_name": "train.py", "cell": "model"}}\n{block}'
    return Job(run="run", policy_version=0, state=environment.initial_state("guess@0"), sample=0, action=action)


def breaks_and_is_repaired(queue, environment, reason, repair):
    """The first job meets the broken host, the second the repaired one."""
    first, second = edit(environment, 2.0), edit(environment, 3.0)
    queue.enqueue([first])
    with working(queue, environment.take):
        dead = queue.wait([first.id], PATIENCE_SECONDS)[first.id]
        status = queue.status()
        repair()
        queue.enqueue([second])
        alive = queue.wait([second.id], PATIENCE_SECONDS)[second.id]
    assert (dead.kind, dead.reward) == (OutcomeKind.INFRASTRUCTURE_ERROR, None)
    assert dead.metric == first.state.metric
    (letter,) = status["dead_letters"]
    assert (letter["job"], letter["attempts"]) == (first.id, ATTEMPTS)
    assert reason in letter["reason"]
    assert letter["reason"].startswith("host: ")
    assert status["runs"]["run"]["dead"] == 1
    assert (alive.kind, alive.metric_after) == (OutcomeKind.SCORED, 0.25)


@pytest.mark.slow
def test_a_full_disk(queue, tmp_path, monkeypatch, small_disk):
    filler = fill(small_disk)
    with contextlib.closing(environment_of(tmp_path, monkeypatch, fakes.FakeSandbox(), small_disk)) as environment:
        breaks_and_is_repaired(queue, environment, "No space left on device", filler.unlink)


@pytest.mark.slow
def test_an_unreadable_snapshot(queue, tmp_path, monkeypatch):
    with contextlib.closing(environment_of(tmp_path, monkeypatch, fakes.FakeSandbox())) as environment:
        edit(environment, 2.0)  # Puts the starting workspace into the store.
        whole = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
        for path, content in whole.items():
            path.write_bytes(bytes(len(content)))

        def repair():
            for path, content in whole.items():
                path.write_bytes(content)

        breaks_and_is_repaired(queue, environment, "is damaged", repair)


@pytest.mark.slow
@pytest.mark.docker
def test_a_missing_image(queue, tmp_path, monkeypatch):
    sandbox = needs.sandbox("docker")
    image = sandbox._image
    sandbox._image = "mlagent-test-of-an-image-that-is-gone:latest"
    with contextlib.closing(sandbox), contextlib.closing(environment_of(tmp_path, monkeypatch, sandbox)) as environment:
        repair = lambda: setattr(sandbox, "_image", image)  # noqa: E731
        breaks_and_is_repaired(queue, environment, "No such image", repair)
