"""`python -m environments.queue`, for people on call."""

import json
import shlex
from pathlib import Path

import pytest
from queue_cases import job, outcome, outstanding

from environments.queue import RetryPolicy, __main__
from environments.queue.__main__ import main
from environments.queue.base import Capabilities, WorkerReport
from environments.worker import __main__ as worker

ANY = Capabilities()


@pytest.fixture
def queue(connect):
    """One dead job, one done, one leased, one queued."""
    queue = connect(retries=RetryPolicy(max_attempts=1))
    queue.enqueue([job(i) for i in range(4)])
    queue.fail(queue.claim("w", ANY), "no image 'x'")
    queue.complete(queue.claim("w", ANY), outcome())
    queue.claim("w", ANY)
    queue.report("w", WorkerReport("host", 1, "1.0", 2, ANY))
    return queue


def test_status_shows_the_same_to_people_and_to_programs(queue, url, capsys):
    assert main(["status", url]) == 0
    text = capsys.readouterr().out
    for shown in ("1 queued, 1 leased, 1 done, 1 dead", "no image 'x'", "outcome scored: 1", "worker w: ok", "lease "):
        assert shown in text
    assert main(["status", url, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["dead_letters"][0]["job"] == job(0).id
    assert status["runs"]["run"]["queued"] == 1


def test_retry_cancel_and_purge(queue, url, capsys):
    assert main(["retry", url, "--run", "run"]) == 0
    assert main(["retry", url, "--job", job(1).id]) == 0
    assert main(["cancel", url, "--run", "run", "--older_than_version", "0"]) == 0
    assert main(["cancel", url, "--run", "run"]) == 0
    assert main(["purge", url, "--older_than_days", "1"]) == 0
    assert main(["purge", url, "--older_than_days", "0"]) == 0
    counts = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert counts == [1, 1, 0, 3, 0, 3]
    assert outstanding(queue) == {0: 1}


def test_the_url_may_come_from_the_environment(queue, url, monkeypatch, capsys):
    monkeypatch.setenv("MLAGENT_QUEUE", url)
    assert main(["status", "-"]) == 0
    assert "run run" in capsys.readouterr().out


def test_a_queue_that_is_not_there_is_not_made(tmp_path, capsys):
    assert main(["status", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert "start the trainer first" in capsys.readouterr().err
    assert main(["grant", f"sqlite:///{tmp_path}/none.db", "worker"]) == 1


def test_the_guides_commands_are_understood(tmp_path):
    guide = Path(__file__).parents[3] / "docs" / "worker_fleet.md"
    lines = [line for line in guide.read_text().splitlines() if line.startswith("python -m environments.")]
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "task.json").touch()
    for line in lines:
        module, *arguments = shlex.split(line.replace("TASKS", str(tmp_path)))[2:]
        if module == "environments.worker":
            assert worker._arguments([*arguments, "--queue=sqlite:///queue.db"]).slots == 8
        else:
            assert __main__._arguments(arguments).url.startswith("postgresql://")
    assert len(lines) == 7
