"""Limits in CPU seconds follow the speed of the host, and a host that became slow does not make a reward."""

import contextlib
import dataclasses

import fakes
import needs
import pytest

from environments.actions import Action
from environments.files.blobs import open_store
from environments.files.snapshots import Snapshots
from environments.protocol import Job, Limits, OutcomeKind
from environments.sandbox.base import Ending, Execution, SandboxError
from environments.sandbox.speed import MOST, REFERENCE_SECONDS, HostSpeed, scaled, work_seconds
from environments.step import Environment

LIMITS = Limits(cpu_seconds=10.0, wall_seconds=120.0)


class ScriptedSandbox(fakes.FakeSandbox):
    """Keeps the limits that it is given; `endings` come first."""

    def __init__(self):
        super().__init__()
        self.limits = []

    def run(self, workspace, script, limits, **options):
        self.limits.append(limits)
        (workspace / "left.txt").write_text(str(len(self.limits)))
        return super().run(workspace, script, limits, **options)


def spent(cpu_seconds, wall_seconds=30.0):
    return Execution(Ending.TIME_LIMIT, None, "", "", wall_seconds, cpu_seconds)


def host(*slowdowns):
    """A host of which each measurement finds the next slowdown."""
    found = iter(slowdowns)
    return HostSpeed(lambda: next(found) * REFERENCE_SECONDS)


@pytest.fixture
def take(tmp_path, monkeypatch):
    """take(speed, *endings) -> outcome and the limits of its executions."""
    task = fakes.fake_task(tmp_path / "task")
    monkeypatch.setattr("environments.step.open_task", lambda root, key: task)
    action = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": "model"}, "guess = 3.0").render()

    def take(speed, *endings):
        sandbox = ScriptedSandbox()
        sandbox.endings += endings
        environment = Environment(tmp_path, sandbox, open_store(tmp_path / "store"), cache=False, speed=speed)
        with contextlib.closing(environment):
            job = Job("run", 0, environment.initial_state("guess@0"), 0, action, limits=LIMITS)
            return environment.take(job), sandbox.limits

    return take


def test_a_slow_host_gives_more_cpu_seconds_and_a_fast_one_no_fewer(take):
    for slowdown, factor in ((2.0, 2.0), (0.5, 1.0), (99.0, MOST)):
        outcome, (limits,) = take(host(slowdown))
        assert outcome.kind is OutcomeKind.SCORED
        assert limits == dataclasses.replace(LIMITS, cpu_seconds=10.0 * factor)


def test_a_time_limit_on_a_host_that_became_slow_is_repeated_with_what_it_takes_now(take):
    outcome, (first, second) = take(host(1.0, 1.5), spent(10.1))
    assert outcome.kind is OutcomeKind.SCORED and outcome.metric_after == 0.25
    assert (first.cpu_seconds, second.cpu_seconds) == (10.0, 15.0)
    assert second.wall_seconds == 90.0, "of the wall time, what the first attempt left"


def test_the_repetition_starts_from_the_same_workspace(take, tmp_path):
    outcome, _ = take(host(1.0, 2.0), spent(10.1))
    Snapshots(open_store(tmp_path / "store")).restore(outcome.snapshot, tmp_path / "restored")
    assert (tmp_path / "restored" / "left.txt").read_text() == "2"


def test_a_time_limit_on_a_host_that_is_as_fast_as_ever_stands(take):
    outcome, limits = take(host(1.0, 1.1), spent(10.1))
    assert outcome.kind is OutcomeKind.TIME_LIMIT and len(limits) == 1


def test_a_script_that_needs_more_than_a_slow_host_gives_is_judged_after_one_repetition(take):
    outcome, limits = take(host(1.0, 2.0, 3.0), spent(10.1), spent(20.1))
    assert outcome.kind is OutcomeKind.TIME_LIMIT and len(limits) == 2


@pytest.mark.parametrize(
    "ending",
    [spent(0.1, wall_seconds=120.0), Execution(Ending.MEMORY_LIMIT, None, "", "", 30.0, 10.0)],
    ids=["slept", "memory"],
)
def test_other_limits_stand_and_cost_no_measurement(take, ending):
    outcome, limits = take(host(1.0), ending)
    assert outcome.kind in (OutcomeKind.TIME_LIMIT, OutcomeKind.MEMORY_LIMIT) and len(limits) == 1


def test_a_sandbox_that_cannot_do_the_work_says_so():
    broken = fakes.FakeSandbox()
    broken.endings.append(Execution(Ending.EXITED, 1, "", "no such module", 0.1, 0.1))
    with pytest.raises(SandboxError, match=r"speed of this host cannot be measured: .*no such module"):
        work_seconds(broken)


def test_this_host_has_a_speed():
    with contextlib.closing(needs.sandbox("bubblewrap")) as sandbox:
        speed = HostSpeed(lambda: work_seconds(sandbox))
        assert 1.0 <= speed.slowdown <= MOST
        assert scaled(LIMITS, speed.slowdown).cpu_seconds >= LIMITS.cpu_seconds
