"""Batches out of groups: in order where nobody is slow, without stragglers where somebody is, within the bound."""

import json
import random
import time

import pytest

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import open_queue
from environments.queue.base import Capabilities
from mlagent_jax.agents.actor import SampledAction
from mlagent_jax.agents.episodes import Step, Trajectory
from mlagent_jax.agents.job_client import JobClient
from mlagent_jax.rl.in_flight import Group, InFlight, episode_reward, rows_of


def state(number):
    return State("task@1", (), f"snapshot {number}", "x = 1", 0.5)


def outcome(reward=0.7, kind=OutcomeKind.SCORED, metric=0.6):
    scored = kind is OutcomeKind.SCORED
    return Outcome(
        kind=kind,
        observation="",
        snapshot="s",
        script="",
        metric_before=0.5,
        metric_after=metric if scored else None,
        scale=Scale(0.5, 1.0, True),
        reward=None if kind is OutcomeKind.INFRASTRUCTURE_ERROR else reward,
    )


def group(index, version):
    actions = tuple(SampledAction(state(index), i, (1, 2), (3,), (-1.0,), f"a{i}", False) for i in range(2))
    jobs = tuple(Job("run", version, a.state, 2 * index + a.sample, a.text) for a in actions)
    return Group(version, index, actions, jobs)


class FakeJobClient:
    """Lets outcomes arrive in waves of group indices."""

    def __init__(self, *waves):
        self.waves, self.submitted = list(waves), []

    def submit(self, jobs):
        self.submitted += jobs

    def arrivals(self, jobs, poll_seconds=None):
        del poll_seconds
        waiting = {job.id: job for job in jobs}
        while waiting or not jobs:
            wave = self.waves.pop(0)
            arrived = {i: outcome() for i, job in waiting.items() if job.sample // 2 in wave}
            for i in arrived:
                del waiting[i]
            yield arrived, time.monotonic()
            if not waiting:
                return


def indices(taken):
    return sorted({row.group for row in taken})


def test_without_patience_a_batch_is_the_oldest_groups_whole():
    in_flight = InFlight(FakeJobClient([1, 2], [3], [0]), batch=2, max_staleness=1)
    in_flight.add([group(i, 0) for i in range(4)])
    taken = in_flight.take(0)
    assert [(row.group, row.action.sample) for row in taken] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(in_flight) == 4
    in_flight.trained(taken)
    assert len(in_flight) == 2


def test_a_straggler_is_left_for_a_later_batch_and_not_thrown_away():
    waves = ([0, 1], [2, 3], [4], [6], [7], [8], [5])
    in_flight = InFlight(FakeJobClient(*waves), batch=2, max_staleness=2, patience_seconds=1e-9)
    sampled, trained = 0, []
    for version in range(4):
        while in_flight.room:
            in_flight.add([group(sampled, version), group(sampled + 1, version)])
            sampled += 2
        taken = in_flight.take(version)
        trained.append(indices(taken))
        in_flight.trained(taken)
    # 5 is left behind once. Then it is at the bound of staleness: it is waited for, however long it takes.
    assert trained == [[0, 1], [2, 3], [4, 6], [5, 7]]


def test_room_is_for_as_many_batches_as_staleness_allows():
    in_flight = InFlight(FakeJobClient(), batch=2, max_staleness=1)
    for first, room in ((0, 2), (2, 1)):
        assert in_flight.room == room
        in_flight.add([group(first, 0), group(first + 1, 0)])
    assert in_flight.room == 0
    assert InFlight(FakeJobClient(), batch=2, max_staleness=2, patience_seconds=1.0).room == 2, "one is for stragglers"


def test_at_most_so_many_policy_versions_are_out_and_the_trainer_waits_rather_than_throws_away(tmp_path):
    queue = open_queue(f"sqlite:///{tmp_path}/queue.db")
    in_flight = InFlight(JobClient(queue, "run", 60.0), batch=2, max_staleness=2, patience_seconds=1e-9)
    dice, held, sampled, trained = random.Random(0), [], 0, []
    for version in range(8):
        while in_flight.room:
            in_flight.add([group(sampled, version), group(sampled + 1, version)])
            sampled += 2
        assert min(map(int, queue.status()["runs"]["run"]["outstanding_by_version"])) >= version - 2
        held += iter(lambda: queue.claim("w", Capabilities()), None)
        dice.shuffle(held)
        # Two stay behind, but for those at the bound: without them `take` would wait.
        held.sort(key=lambda lease: lease.job.policy_version > version - 2)
        for lease in held[:-2]:
            assert queue.complete(lease, outcome())
        held = held[-2:]
        taken = in_flight.take(version)
        assert max(version - row.version for row in taken) <= 2
        trained += indices(taken)
        in_flight.trained(taken)
    queue.close()
    assert len(trained) == 16
    assert sorted(trained + [data["index"] for data in in_flight.to_list()]) == list(range(sampled))


def test_a_signal_while_a_group_is_added_keeps_no_part_of_a_batch():
    class Stopping(InFlight):
        stopping = False

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if self.stopping and name in ("_groups", "_unfinished"):
                raise KeyboardInterrupt

    in_flight = Stopping(FakeJobClient(), batch=2, max_staleness=1)
    object.__setattr__(in_flight, "stopping", True)
    with pytest.raises(KeyboardInterrupt):
        in_flight.add([group(0, 0)], more=True)
    assert in_flight.to_list() == []


def test_a_batch_that_is_being_sampled_is_not_kept_for_a_resume_before_it_is_whole():
    job_client = FakeJobClient()
    in_flight = InFlight(job_client, batch=2, max_staleness=1)
    in_flight.add([group(0, 0), group(1, 0)])
    in_flight.add([group(3, 0)], more=True)
    in_flight.add([group(2, 0)], more=True)
    assert len(job_client.submitted) == 8, "each is handed out at once"
    assert [data["index"] for data in in_flight.to_list()] == [0, 1]
    in_flight.add([])
    assert [data["index"] for data in in_flight.to_list()] == [0, 1, 2, 3], "in the order of the run"


def test_groups_that_are_handed_out_while_a_batch_is_waited_for_may_take_a_straggler_s_place():
    class Growing(FakeJobClient):
        def arrivals(self, jobs, poll_seconds=None):
            if len(self.submitted) == 4:  # both groups are out, and one is slow
                yield super().arrivals(jobs).__next__()
                in_flight.add([group(2, 0)])
                yield {}, time.monotonic()
            yield from super().arrivals(jobs, poll_seconds)

    in_flight = InFlight(Growing([1], [2], [0]), batch=2, max_staleness=2, patience_seconds=1e-9)
    in_flight.add([group(0, 0), group(1, 0)])
    assert indices(in_flight.take(0)) == [1, 2]


def test_groups_under_way_survive_json():
    in_flight = InFlight(FakeJobClient(), batch=1, max_staleness=0)
    in_flight.add([group(7, 3)])
    (data,) = json.loads(json.dumps(in_flight.to_list()))
    assert (data["index"], data["version"]) == (7, 3)
    assert "prompt" not in json.dumps(data), "a state's prompt is made again"
    assert Group.actions_of(data, lambda state: [1, 2]) == group(7, 3).actions


def test_every_action_of_an_episode_is_trained_on_what_the_episode_reached():
    episodes = [Trajectory("train", 7, state(0)) for _ in range(2)]
    for number, metric in enumerate([0.4, 0.5, 0.9, 0.6]):  # of two steps each, step by step
        action = SampledAction(state(0), 0, (1,), (2,), (0.0,), f"a{number}", False)
        job = Job("run", 5, state(0), number, action.text)
        episodes[number % 2].take(Step(action, job, outcome(metric=metric), 0.0))
    rows = rows_of(episodes, "paper_v2", 5)
    assert [row.reward for row in rows] == pytest.approx([0.8, 0.8, 0.2, 0.2])
    assert [row.action.text for row in rows] == ["a0", "a2", "a1", "a3"]
    assert {(row.group, row.version) for row in rows} == {(7, 5)}


def test_an_episode_is_worth_its_best_submission_its_last_failure_or_nothing_known():
    failed = outcome(kind=OutcomeKind.SCRIPT_ERROR)
    assert episode_reward("paper_v2", [outcome(metric=0.75), outcome(metric=0.6), failed]) == pytest.approx(0.5)
    assert episode_reward("paper_v2", [failed]) == -1.0
    assert episode_reward("paper_v2", [outcome(), outcome(kind=OutcomeKind.INFRASTRUCTURE_ERROR)]) is None
