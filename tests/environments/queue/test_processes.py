"""Processes that are killed and stopped at the worst moment. Both engines."""

import collections
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
from processes import stopped_worker, trainer, worker
from queue_cases import job, outcome

from environments.protocol import OutcomeKind
from environments.queue import RetryPolicy
from environments.queue.base import Capabilities


@pytest.fixture(scope="module")
def processes():
    """Starts processes cheaply, with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["queue_cases", "processes", "environments.queue.sqlite", "environments.queue.postgres"]
    )
    return context


def events(log_path):
    counted = collections.defaultdict(collections.Counter)
    for line in log_path.read_text().splitlines():
        event, identity = line.split()
        counted[event][identity] += 1
    return counted


def holders(queue):
    return {lease["worker"] for lease in queue.status()["leases"]}


def kill_workers_at_random(processes, connect, url, log_path, jobs, workers, kills, seconds):
    """Let `workers` do `jobs` while one of them is killed again and again, and a new one started."""
    queue = connect(retries=RetryPolicy(max_attempts=1000, backoff_seconds=0.1, max_lapses=1000))
    wanted = [job(sample) for sample in range(jobs)]
    queue.enqueue(wanted)
    ids, running, started, dice = [each.id for each in wanted], [], 0, random.Random(0)
    found = {}
    while len(found) < jobs:
        while len(running) < workers:
            started += 1
            name = f"w{started}"
            arguments = (url, name, log_path, seconds)
            running.append(processes.Process(target=worker, name=name, args=arguments, daemon=True))
            running[-1].start()
        next_kill = (started - workers + 1) * jobs // (kills + 1)
        found = queue.wait(ids, timeout_seconds=120, count=next_kill)
        assert len(found) >= next_kill
        victims = [process for process in running if process.name in holders(queue)]
        if not victims:
            time.sleep(0.02)
            continue
        victim = dice.choice(victims)
        os.kill(victim.pid, signal.SIGSTOP)
        if victim.name in holders(queue):  # Else it was done with the job meanwhile.
            running.remove(victim)
            victim.kill()
            victim.join()
        else:
            os.kill(victim.pid, signal.SIGCONT)
    for process in running:
        process.kill()
        process.join()
    assert {each.kind for each in found.values()} == {OutcomeKind.SCORED}
    counted = events(log_path)
    assert max(counted["accepted"].values()) == 1
    assert set(counted["executed"]) == set(ids)
    # A worker may be killed between handing in and noting it.
    assert jobs - kills <= len(counted["accepted"]) <= jobs
    # A killed worker's job was claimed again.
    assert max(map(int, queue.status()["attempts"])) > 1


@pytest.mark.slow
def test_killed_workers_lose_nothing_and_no_result_counts_twice(processes, connect, url, tmp_path):
    kill_workers_at_random(processes, connect, url, tmp_path / "log", jobs=24, workers=4, kills=4, seconds=0.1)


@pytest.mark.slow
def test_600_jobs_with_24_workers_killed_at_random(processes, connect, url, tmp_path):
    kill_workers_at_random(processes, connect, url, tmp_path / "log", jobs=600, workers=24, kills=30, seconds=0.2)


def test_a_worker_stopped_past_its_lease_is_fenced(processes, connect, url):
    queue = connect(retries=RetryPolicy(backoff_seconds=0.01))
    queue.enqueue([job()])
    here, there = processes.Pipe()
    process = processes.Process(target=stopped_worker, args=(url, there), daemon=True)
    process.start()
    assert here.recv() == 1
    os.kill(process.pid, signal.SIGSTOP)
    here.send("go on")
    end = time.monotonic() + 30
    while (lease := queue.claim("other", Capabilities())) is None and time.monotonic() < end:
        time.sleep(0.05)
    assert queue.complete(lease, outcome("other"))
    os.kill(process.pid, signal.SIGCONT)
    assert here.recv() == (False, False)
    process.join()
    assert queue.outcomes([job().id])[job().id].observation == "other"
    assert queue.status()["late_results"] == 1


@pytest.mark.parametrize("die_at", [3, 4])
def test_a_trainer_killed_after_consuming_trains_on_each_result_once_and_executes_nothing_again(
    processes, connect, url, tmp_path, die_at
):
    queue = connect()
    log, checkpoint = tmp_path / "log", str(tmp_path / "checkpoint.json")
    helper = processes.Process(target=worker, args=(url, "w", log, 0.0), daemon=True)
    helper.start()
    first = processes.Process(target=trainer, args=(url, checkpoint, 5, die_at), daemon=True)
    first.start()
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    assert max(queue.consumed("run").values()) == die_at
    second = processes.Process(target=trainer, args=(url, checkpoint, 5, 0), daemon=True)
    second.start()
    second.join(60)
    assert second.exitcode == 0
    helper.kill()
    helper.join()
    with open(checkpoint) as file:
        step, trained = json.load(file)
    assert step == 5
    wanted = {job(sample, version=version).id for version in range(1, 6) for sample in range(3)}
    assert sorted(trained) == sorted(wanted)
    assert events(log)["executed"] == collections.Counter(wanted)
    assert queue.consumed("run").keys() == wanted
