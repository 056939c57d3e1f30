"""The rewards by name, against the tables that they were published in, and what every reward of ours must hold."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from environments.protocol import Outcome, OutcomeKind, Scale
from environments.rewards import REWARDS, STAGES, compute

BASE = Outcome(
    kind=OutcomeKind.SCORED,
    observation="validation accuracy 0.7",
    snapshot="s",
    script="",
    metric_before=0.6,
    metric_after=0.6,
    scale=Scale(m_init=0.5, m_best=0.9, higher_is_better=True),
)
FAILURES = [OutcomeKind.INVALID_ACTION, OutcomeKind.SCRIPT_ERROR]
LIMITS = [OutcomeKind.TIME_LIMIT, OutcomeKind.MEMORY_LIMIT]


def scored(delta, scale=BASE.scale):
    """An outcome that improved the metric by `delta`."""
    signed = delta if scale.higher_is_better else -delta
    return dataclasses.replace(BASE, scale=scale, metric_after=BASE.metric_before + signed)


def ended(kind):
    return dataclasses.replace(BASE, kind=kind, metric_after=None)


@pytest.mark.parametrize(
    ("name", "failure", "unscored"),
    [("paper_v1", 0.0, 0.5), ("paper_v2", -1.0, 0.0)],
)
def test_published_rewards_of_steps_that_are_not_scored(name, failure, unscored):
    assert [compute(name, ended(kind)) for kind in FAILURES] == [failure] * 2
    assert [compute(name, ended(kind)) for kind in (OutcomeKind.NO_EDIT, *LIMITS)] == [unscored] * 3


@pytest.mark.parametrize("delta", np.linspace(-0.9, 0.9, 19))
@pytest.mark.parametrize("higher", [True, False])
def test_published_rewards_of_scored_steps(delta, higher):
    scale = Scale(m_init=0.5, m_best=0.9 if higher else 0.1, higher_is_better=higher)
    sigmoid = 1.0 / (1.0 + math.exp(-100.0 * delta / 0.4))
    assert compute("paper_v1", scored(delta, scale)) == pytest.approx(sigmoid, abs=1e-12)
    assert compute("paper_v2", scored(delta, scale)) == pytest.approx(max(-1.0, min(1.0, delta / 0.4)), abs=1e-12)


def test_a_huge_loss_does_not_overflow():
    assert compute("paper_v1", scored(-1e9)) == 0.0
    assert compute("improvement", scored(-1e9)) == 0.1


def test_ours_tells_small_gains_from_large_ones_where_v1_does_not():
    small, large = scored(0.05 * 0.4), scored(0.5 * 0.4)
    assert compute("paper_v1", large) - compute("paper_v1", small) < 0.01
    assert compute("improvement", large) - compute("improvement", small) > 0.3


OURS = ["improvement", "improvement:neutral=0", "improvement:unchanged=0.3,neutral=0.3", "improvement:unchanged=0"]


@pytest.mark.parametrize("name", OURS)
def test_ours_rises_with_delta_and_is_bounded(name):
    changes = [delta for delta in np.linspace(-2, 2, 82) if abs(delta) > 0.01 * 0.4]
    rewards = [compute(name, scored(delta)) for delta in changes]
    assert all(left <= right for left, right in itertools.pairwise(rewards))
    assert all(left < right for left, right in itertools.pairwise(rewards[41:]))
    assert 0.0 <= min(rewards) <= max(rewards) <= 1.0


@pytest.mark.parametrize("name", OURS)
def test_ours_pays_no_limit_more_than_an_error_and_doing_nothing_no_more_than_any_attempt_that_runs(name):
    error, nothing = (compute(name, ended(kind)) for kind in (OutcomeKind.SCRIPT_ERROR, OutcomeKind.NO_EDIT))
    assert all(compute(name, ended(kind)) <= error for kind in LIMITS)
    assert compute(name, ended(OutcomeKind.INVALID_ACTION)) <= error <= nothing
    assert all(nothing <= compute(name, scored(delta)) for delta in np.linspace(-2, 2, 82))


@pytest.mark.parametrize("delta", [0.0, 0.003, -0.003])
def test_an_edit_that_leaves_the_score_is_worth_as_much_as_a_look(delta):
    look = compute("improvement", ended(OutcomeKind.NO_EDIT))
    assert compute("improvement", scored(delta)) == look
    assert compute("improvement", scored(0.005)) > 0.5 > compute("improvement", scored(-0.005)) > 0.45


def test_a_gain_within_the_noise_of_running_again_is_none():
    noisy = dataclasses.replace(BASE.scale, noise=0.02)
    look = compute("improvement", ended(OutcomeKind.NO_EDIT))
    assert [compute("improvement", scored(delta, noisy)) for delta in (-0.019, 0.019)] == [look] * 2
    assert compute("improvement", scored(0.021, noisy)) > 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", True])
def test_a_reward_that_gives_no_number_is_named(monkeypatch, value):
    monkeypatch.setitem(REWARDS._functions, "odd", lambda outcome: value)
    with pytest.raises(ValueError, match=r"reward odd gave .* for an outcome scored; it must give a finite number"):
        compute("odd", BASE)


@pytest.mark.parametrize("name", REWARDS.names())
def test_an_infrastructure_error_has_no_reward(name):
    assert compute(name, ended(OutcomeKind.INFRASTRUCTURE_ERROR)) is None


@pytest.mark.parametrize("name", REWARDS.names())
def test_the_same_outcome_has_the_same_reward(name):
    assert compute(name, scored(0.1)) == compute(name, Outcome.from_dict(scored(0.1).to_dict()))


def test_noise_is_uniform_and_blind_to_the_metric():
    outcomes = [dataclasses.replace(scored(0.1), observation=str(i)) for i in range(2000)]
    rewards = [compute("noise", outcome) for outcome in outcomes]
    assert np.mean(rewards) == pytest.approx(0.5, abs=0.03)
    assert np.std(rewards) == pytest.approx(12**-0.5, abs=0.02)
    assert compute("noise", scored(0.1)) == compute("noise", scored(-0.3))


def test_an_unknown_reward_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"'profit'; choose one of improvement, noise, paper_v1, paper_v2, staged\b"):
        compute("profit", BASE)


def test_a_task_without_headroom_is_refused():
    with pytest.raises(ValueError, match="no headroom"):
        compute("improvement", scored(0.1, Scale(0.5, 0.5, True)))


def reached(kind, count, delta=None):
    """An outcome that reached so many stages."""
    base = ended(kind) if delta is None else scored(delta)
    return dataclasses.replace(base, progress=STAGES[:count])


def test_stages_tell_failures_apart_and_weigh_as_much_as_is_said():
    error = OutcomeKind.SCRIPT_ERROR
    rewards = [compute("staged", reached(error, count)) for count in (3, 4, 5)]
    assert rewards == sorted(set(rewards))
    assert compute("staged:weight=0", reached(error, 5)) == compute("improvement", ended(error))
    assert compute("staged:weight=1", reached(error, 3)) == 0.5
    assert compute("staged", reached(None, 6, 0.2)) == pytest.approx(0.8 * compute("improvement", scored(0.2)) + 0.2)


def test_stages_pay_no_limit_more_than_an_error_and_nothing_more_than_an_attempt_that_runs():
    for kind in LIMITS:
        assert compute("staged", reached(kind, 5)) <= compute("staged", reached(OutcomeKind.SCRIPT_ERROR, 3))
    worst = min(compute("staged", reached(None, 6, delta)) for delta in np.linspace(-2, 2, 82))
    others = [reached(OutcomeKind.INVALID_ACTION, 1), reached(OutcomeKind.NO_EDIT, 2), reached(OutcomeKind.NO_EDIT, 5)]
    others += [reached(OutcomeKind.SCRIPT_ERROR, count) for count in (3, 4, 5)]
    assert all(compute("staged", outcome) < worst for outcome in others)
