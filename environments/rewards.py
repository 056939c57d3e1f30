"""Rewards by name: pure functions of a stored outcome, so that another reward can be computed without executing again.

`paper_v1` and `paper_v2` are the two rewards of ML-Agent (arXiv 2505.23723, versions 1 and 2) as published, faults
included. With `delta` the improvement of the metric (positive is better) and `gap = |m_best - m_init|`:

    outcome                              paper_v1                       paper_v2
    invalid_action, script_error         0                              -1
    no_edit, time_limit, memory_limit    0.5                            0
    scored                               sigmoid(100 * delta / gap)     clip(delta / gap, -1, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from environments.protocol import Outcome, OutcomeKind, digest

FAILURES = (OutcomeKind.INVALID_ACTION, OutcomeKind.SCRIPT_ERROR)
LIMITS = (OutcomeKind.TIME_LIMIT, OutcomeKind.MEMORY_LIMIT)


def _relative_delta(outcome: Outcome) -> float:
    """delta / gap of a scored outcome."""
    if outcome.scale.gap <= 0:
        raise ValueError(f"m_init and m_best are both {outcome.scale.m_init}: the task has no headroom to reward")
    return outcome.delta / outcome.scale.gap


def paper_v1(outcome: Outcome) -> float:
    """ML-Agent v1: in [0, 1]; at alpha = 100 / gap it hardly tells a small gain from a large one."""
    if outcome.kind in FAILURES:
        return 0.0
    if outcome.kind is not OutcomeKind.SCORED:
        return 0.5
    # tanh form of the sigmoid: no overflow for a large negative delta.
    return 0.5 * (1.0 + math.tanh(50.0 * _relative_delta(outcome)))


def paper_v2(outcome: Outcome) -> float:
    """ML-Agent v2: linear in delta / gap, in [-1, 1]."""
    if outcome.kind in FAILURES:
        return -1.0
    if outcome.kind is not OutcomeKind.SCORED:
        return 0.0
    return max(-1.0, min(1.0, _relative_delta(outcome)))


def improvement(outcome: Outcome) -> float:
    """Ours: bounded in [0, 1], monotone in delta, tells small gains from large ones.

    A graded edit is worth `0.5 + 0.5 * tanh(2 * delta / gap)`, so that closing half of the gap gives 0.88 and losing
    half of it 0.12. A step that changes nothing gets 0.15, as much as losing 43% of the gap: a step is lost, and doing
    nothing must not pay more than trying. A script that fails, or uses up any limit, gets 0.05, an action that does not
    even apply 0: the difference is partial credit for what the host observed from outside, never for what a script
    prints.
    """
    if outcome.kind is OutcomeKind.INVALID_ACTION:
        return 0.0
    if outcome.kind is OutcomeKind.SCRIPT_ERROR or outcome.kind in LIMITS:
        return 0.05
    if outcome.kind is OutcomeKind.NO_EDIT:
        return 0.15
    return 0.5 + 0.5 * math.tanh(2.0 * _relative_delta(outcome))


def noise(outcome: Outcome) -> float:
    """A control, uniform in [0, 1]: what it trains must not get better. It knows nothing but which outcome it is."""
    return int(digest([outcome.snapshot, outcome.observation, outcome.diff])[:8], 16) / 0xFFFFFFFF


REWARDS: dict[str, Callable[[Outcome], float]] = {
    "paper_v1": paper_v1,
    "paper_v2": paper_v2,
    "improvement": improvement,
    "noise": noise,
}


def compute(name: str, outcome: Outcome) -> float | None:
    """Reward of `outcome` under the reward called `name`; None for an infrastructure error, which is masked.

    Raises:
      ValueError: no such reward, or a task without headroom.
    """
    if name not in REWARDS:
        raise ValueError(f"reward is {name!r}; choose one of {', '.join(sorted(REWARDS))}")
    if outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR:
        return None
    return REWARDS[name](outcome)
