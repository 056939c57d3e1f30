"""Tracked values of states, against SPO's Beta posterior for rewards of 0 and 1."""

import json
import types

import pytest

from mlagent_jax.rl.tracker import ValueTracker


def row(state, reward):
    return types.SimpleNamespace(action=types.SimpleNamespace(state=types.SimpleNamespace(id=state)), reward=reward)


def test_values_are_the_mean_of_a_beta_posterior_that_forgets_as_the_policy_moves():
    tracker, alpha, beta = ValueTracker(0.06, 0.5, 0.96), 0.0, 0.0
    moves = [0.01, 0.06, 1.0, 0.0]
    for turn, (reward, moved) in enumerate(zip([1.0, 0.0, 1.0, 1.0], moves, strict=True)):
        share = min(max(2 ** (-(moves[turn - 1] if turn else 0.0) / 0.06), 0.5), 0.96)
        alpha, beta = share * alpha + reward, share * beta + 1 - reward
        tracker.learn([row("a", reward), row("b", None)], moved)
        assert tracker.baselines([row("a", None)]) == [pytest.approx(alpha / (alpha + beta))]


def test_a_state_that_was_never_seen_has_the_mean_of_all():
    tracker = ValueTracker(0.06, 0.875, 0.96)
    assert tracker.baselines([row("a", 1.0)]) == [0.0]
    tracker.learn([row("a", 1.0), row("a", 0.0), row("b", 1.0)], 0.0)
    assert tracker.baselines([row("new", None)]) == [pytest.approx(2 / 3)]


def test_it_survives_json():
    tracker, other = (ValueTracker(0.06, 0.875, 0.96) for _ in range(2))
    tracker.learn([row("a", 0.3), row("b", 0.9)], 0.02)
    other.restore(json.loads(json.dumps(tracker.to_dict())))
    for each in (tracker, other):
        each.learn([row("a", 0.7)], 0.01)
    assert other.to_dict() == tracker.to_dict()
