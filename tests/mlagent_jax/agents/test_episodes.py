"""Trajectories end when they hand in, run out of time or room, or are lost; what our side failed at is no step on."""

import dataclasses

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from mlagent_jax.agents.episodes import Agent, Reply, Trajectory, best_submission, play

START = State("task@1", (), "s", "x = 1", 0.5)


def outcome(metric=None, kind=OutcomeKind.SCORED, **fields):
    fields = {"seconds": 40.0, **fields}
    return Outcome(kind, "seen", "next", "x = 2", 0.5, metric, Scale(0.5, 1.0, True), 0.0, **fields)


class Scripted(Agent):
    """Says what a trajectory's seed lists, a word a step; `-` is no answer."""

    def __init__(self):
        self.waves = []

    def fits(self, state):
        return not self.misfit(state)

    def misfit(self, state):
        long = state.script == "long" or "long" in [step.action for step in state.history]
        return "too long" if long else ""

    def act(self, trajectories, depth):
        self.waves.append((depth, [t.index for t in trajectories]))
        words = [t.seed.split()[depth] for t in trajectories]
        return [None if word == "-" else Reply(word, truncated=word == "cut") for word in words]


OUTCOMES = {
    "good": outcome(0.8),
    "better": outcome(0.9),
    "final": outcome(kind=OutcomeKind.NO_EDIT, final=True),
    "broken": outcome(kind=OutcomeKind.INFRASTRUCTURE_ERROR, seconds=0.0),  # so that time is not what ends it
    "slow": outcome(0.6, seconds=61.0),
    "long": outcome(0.6),
    "cut": outcome(kind=OutcomeKind.INVALID_ACTION),
}


def test_each_trajectory_goes_to_its_own_end_in_waves_of_all_that_go_on():
    seeds = ["good better good", "final good", "- good", "good broken good", "slow good", "long good", "cut good -"]
    trajectories, agent = [Trajectory("train", i, START, seed) for i, seed in enumerate(seeds)], Scripted()

    def job(trajectory, action):
        return Job("run", 3, trajectory.state, trajectory.index, action.text, action.truncated)

    def execute(jobs):
        assert [job.truncated for job in jobs] == [job.action == "cut" for job in jobs]
        return [dataclasses.replace(OUTCOMES[job.action]) for job in jobs]

    waves = list(play(trajectories, agent, job, execute, 3, minutes=1.0))
    # 80 seconds of scripts are over a minute: nobody begins a third step.
    assert agent.waves == [(0, [0, 1, 2, 3, 4, 5, 6]), (1, [0, 3, 6])]
    assert [[t.index for t, _ in wave] for wave in waves] == [[0, 1, 3, 4, 5, 6], [0, 3, 6]]
    assert [[step.action.text for step in t.steps] for t in trajectories] == [
        *(["good", "better"], ["final"], [], ["good", "broken"], ["slow"], ["long"], ["cut", "good"])
    ]
    assert [t.index for t in trajectories if t.lost] == [2]
    assert [(t.index, t.cut) for t in trajectories if t.cut] == [(5, "too long")], "what ends early is told"
    assert [len(t.state.history) for t in trajectories] == [2, 1, 0, 1, 1, 1, 2], "a step that broke is none"
    assert [t.steps[1].job.state.history[0].action for t in (trajectories[0], trajectories[3])] == ["good", "good"]
    assert all(t.seconds >= sum(step.outcome.seconds for step in t.steps) for t in trajectories)
    best = [best_submission(step.outcome for step in t.steps) for t in trajectories]
    assert [found and found.metric_after for found in best] == [0.9, None, None, 0.8, 0.6, 0.6, 0.8]


def test_nothing_is_executed_where_nobody_answers():
    def execute(jobs):
        raise AssertionError("no jobs")

    lost = Trajectory("train", 0, START, "-")
    assert list(play([lost], Scripted(), lambda t, action: None, execute, 2)) == []
    assert lost.lost and not lost.steps


def test_a_state_that_does_not_fit_is_never_asked_and_is_no_episode_without_gain():
    agent = Scripted()
    long = Trajectory("train", 0, dataclasses.replace(START, script="long"), "good")
    assert list(play([long], agent, lambda t, action: None, lambda jobs: [], 2)) == [] and agent.waves == []
    assert (long.lost, long.cut, long.ended) == ("too long", "", True)


def test_of_equal_submissions_the_first_is_the_best_whatever_way_the_metric_counts():
    down = Scale(0.5, 0.0, False)
    found = [
        dataclasses.replace(outcome(metric), scale=down, reason=str(i)) for i, metric in enumerate([0.4, 0.3, 0.3])
    ]
    assert best_submission(found).reason == "1"
    assert best_submission([outcome(kind=OutcomeKind.SCRIPT_ERROR)]) is None
