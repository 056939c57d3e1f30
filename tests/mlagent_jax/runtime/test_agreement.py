"""What a run of several processes refuses, and that all take the same batch, whoever's jobs are late and whoever's
clock is fast. The processes are threads here, which meet where processes would."""

import contextlib
import signal
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import open_queue
from environments.queue.base import Capabilities, QueueError
from mlagent_jax.agents import job_client as job_client_module
from mlagent_jax.agents.job_client import JobClient
from mlagent_jax.rl import in_flight
from mlagent_jax.rl.in_flight import Group, InFlight
from mlagent_jax.runs.inputs import check_inputs
from mlagent_jax.runtime import processes
from mlagent_jax.runtime.errors import ConfigError, PeerError
from mlagent_jax.runtime.interruption import Interruption, Stopped
from mlagent_jax.settings.schema import Config
from mlagent_jax.settings.stages import CollectConfig

SECONDS = 60  # for one to wait for another


def test_collecting_with_a_language_model_is_for_one_process(monkeypatch):
    config = Config(stages=("collect",), collect=CollectConfig(expert="endpoint"))
    check_inputs(config)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ConfigError, match=r"config\.stages has collect.*collect in one process"):
        check_inputs(config)


def test_a_time_between_heartbeats_that_is_no_number_is_named(monkeypatch):
    for name, value in ((processes.ADDRESS, "127.0.0.1:1"), (processes.COUNT, "2"), (processes.INDEX, "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(processes.HEARTBEAT, "soon")
    with pytest.raises(ConfigError, match=r"\$MLAGENT_HEARTBEAT_SECONDS must be a number of seconds"):
        processes.join()


@pytest.fixture
def together(monkeypatch):
    """A function that calls one function in each of two processes, with its number, and gives their results."""
    own, barrier, given = threading.local(), threading.Barrier(2, timeout=SECONDS), [b"", b""]

    def exchange(data):
        given[own.index] = data
        barrier.wait()
        found = list(given)
        barrier.wait()
        return found

    def start(work, index):
        own.index = index
        return work(index)

    def both(work):
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(start, work, index) for index in range(2)]
        return [call.exception() or call.result() for call in calls]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: own.index)
    monkeypatch.setattr(processes, "is_first", lambda: own.index == 0)
    monkeypatch.setattr(processes, "exchange", exchange)
    both.index = lambda: own.index
    return both


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setattr(job_client_module, "POLL_SECONDS", 0.05)
    with contextlib.closing(open_queue(f"sqlite:///{tmp_path}/queue.db")) as queue:
        yield queue


def group(index, version):
    """Of two jobs, of which each process has one."""
    state = State("task@1", (), f"snapshot {index}", "x = 1", 0.5)
    jobs = tuple(Job("run", version, state, 2 * index + place, "edit") for place in range(2))
    return Group(version, index, (None, None), jobs)


def work(queue, leave=()):
    """Finish all queued jobs but the `sample`s to leave, which are held; returns those."""
    held = []
    while (lease := queue.claim("worker", Capabilities(4, 8192), lease_seconds=600.0)) is not None:
        if lease.job.sample in leave:
            held.append(lease)
            continue
        assert queue.complete(lease, outcome(lease.job.sample))
    return held


def outcome(number):
    return Outcome(
        OutcomeKind.SCORED, str(number), "s", "", 0.5, 0.6, Scale(0.5, 1.0, True), reward=0.1 * number, seconds=1 / 3
    )


def rows(taken):
    return [(row.group, row.version, row.job.sample, row.outcome) for row in taken]


@pytest.mark.parametrize("hurried", [0, 1])
@pytest.mark.parametrize("late", [4, 5], ids=["of the first process", "of the other"])
def test_a_straggler_in_the_share_of_one_is_left_out_by_both_and_trained_on_later(
    together, queue, monkeypatch, late, hurried
):
    """Though to one of the clocks no time passes: it is the first process's that counts."""

    def monotonic():
        return time.monotonic() * (1e4 if together.index() == hurried else 0.0)

    for module in (job_client_module, in_flight):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=monotonic))
    ways = [InFlight(JobClient(queue, "run", 1e9), batch=2, max_staleness=2, patience_seconds=100.0) for _ in range(2)]
    trained, held, sampled = [], [], 0

    def take(version, groups, shown):
        def one(index):
            ways[index].add(groups)
            if index == 0:
                held.extend(work(queue, leave=[late]))
            taken = ways[index].take(version, shown[index].append)
            ways[index].trained(taken)
            return rows(taken)

        return together(one)

    for version in range(4):
        room = 2 * ways[0].room
        if version == 2:  # It is at the bound of staleness now.
            assert queue.complete(held.pop(), outcome(late))
        elif version == 1 and hurried == 1:  # The first one's clock stands still, so nobody is late.
            threading.Timer(0.5, lambda: queue.complete(held.pop(), outcome(late))).start()
        shown = ([], [])
        one, other = take(version, [group(i, version) for i in range(sampled, sampled + room)], shown)
        sampled += room
        assert one == other
        assert sorted(o.observation for o in shown[0]) == sorted(o.observation for o in shown[1])
        assert all(row[3] == outcome(row[2]) for row in one), "as it was handed in"
        trained.append(sorted({row[0] for row in one}))
        if version == 1 and hurried == 1:
            break
    expected = [[0, 1], [3, 4], [2, 5], [6, 7]] if hurried == 0 else [[0, 1], [2, 3]]
    assert trained == expected


def test_batches_are_the_oldest_groups_where_nobody_is_left_behind(together, queue):
    job_client = JobClient(queue, "run", 1e9)

    def one(index):
        in_flight = InFlight(job_client, batch=2, max_staleness=1)
        in_flight.add([group(i, 0) for i in range(4)])
        if index == 0:  # The younger ones are there first.
            held = work(queue, leave=range(4))
            threading.Timer(0.3, lambda: [queue.complete(lease, outcome(lease.job.sample)) for lease in held]).start()
        return [row[:3] for row in rows(in_flight.take(0))]

    batch = [(0, 0, 0), (0, 0, 1), (1, 0, 2), (1, 0, 3)]
    assert together(one) == [batch, batch]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_ends_the_wait_of_both(together, queue, failing):
    reasons = [None, None]
    reasons[failing] = "no bubblewrap"

    def one(index):
        in_flight = InFlight(JobClient(queue, "run", 1e9, lambda: reasons[index]), batch=1, max_staleness=0)
        in_flight.add([group(0, 0)])
        return in_flight.take(0)

    errors = together(one)
    assert isinstance(errors[failing], QueueError) and "no bubblewrap" in str(errors[failing])
    assert isinstance(errors[1 - failing], PeerError) and f"process {failing} of 2 failed" in str(errors[1 - failing])


def test_a_signal_to_one_that_has_all_its_outcomes_ends_the_wait_of_both(together, queue):
    told = [Interruption(), Interruption()]

    def one(index):
        told[index].defer()
        in_flight = InFlight(JobClient(queue, "run", 1e9, check=told[index].check), batch=1, max_staleness=0)
        in_flight.add([group(0, 0)])
        if index == 0:
            work(queue, leave=[0])  # of the first process's share
            threading.Timer(0.3, told[1].request, [signal.SIGTERM]).start()
        return in_flight.take(0)

    stopped = together(one)
    assert [type(error) for error in stopped] == [Stopped, Stopped]
    assert [error.signum for error in stopped] == [signal.SIGTERM, signal.SIGTERM]
