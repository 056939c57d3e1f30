"""Rewards by name: pure functions of a stored outcome, so that a new reward needs no new execution.

A job names its reward, with parameters if the defaults do not suit: `improvement:neutral=0.2`. The worker computes it.
docs/add_a_reward.md adds your own in a file of ten lines.

`paper_v1` and `paper_v2` are the two rewards of ML-Agent (arXiv 2505.23723, versions 1 and 2) as published, faults
included. `delta` is the improvement of the metric (positive is better), and `gap = |m_best - m_init|`:

    outcome                              paper_v1                       paper_v2
    invalid_action, script_error         0                              -1
    no_edit, time_limit, memory_limit    0.5                            0
    scored                               sigmoid(100 * delta / gap)     clip(delta / gap, -1, 1)
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Annotated

from environments.protocol import Outcome, OutcomeKind, digest
from environments.registry import Range, Registry

Reward = Callable[..., float]
"""Signature `reward(outcome, *, its parameters)`. Never called for an infrastructure error, which has no reward."""
REWARDS: Registry[Reward] = Registry("reward", group="mlagent_jax.rewards")
FAILURES = (OutcomeKind.INVALID_ACTION, OutcomeKind.SCRIPT_ERROR)
STAGES = ("parsed", "applied", "started", "submission_written", "valid", "scored")
"""Values of `Outcome.progress`, in order."""
LIMITS = (OutcomeKind.TIME_LIMIT, OutcomeKind.MEMORY_LIMIT)


def compute(choice: str, outcome: Outcome) -> float | None:
    """Compute the reward that `choice` names; None for an infrastructure error, which is masked.

    Raises:
      ValueError: no such reward or parameter, a task without headroom, or a reward that is not a finite number.
    """
    reward = REWARDS.choose(choice)
    if outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR:
        return None
    value = reward(outcome)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"reward {choice} gave {value!r} for an outcome {outcome.kind}; it must give a finite number")
    return float(value)


def relative_delta(outcome: Outcome) -> float:
    """Return delta / gap of a scored outcome.

    Raises:
      ValueError: the task has no headroom.
    """
    if outcome.scale.gap <= 0:
        raise ValueError(f"m_init and m_best are both {outcome.scale.m_init}: the task has no headroom to reward")
    return outcome.delta / outcome.scale.gap


def changes_the_score(outcome: Outcome, least: float = 0.01) -> bool:
    """Check whether a step moved the metric by more than `least` gaps and by more than re-running the script does.

    A comment, an edit of code that never runs, a step that only reads or re-runs: all leave the submission, and so the
    metric, unchanged.
    """
    if outcome.kind is not OutcomeKind.SCORED:
        return False
    moved = relative_delta(outcome)
    return abs(moved) > max(least, outcome.scale.noise / outcome.scale.gap)


@REWARDS.register
def paper_v1(outcome: Outcome) -> float:
    """ML-Agent v1: in [0, 1]; at alpha = 100 / gap it hardly distinguishes small gains from large ones."""
    if outcome.kind in FAILURES:
        return 0.0
    if outcome.kind is not OutcomeKind.SCORED:
        return 0.5
    # tanh form of the sigmoid: no overflow for a large negative delta.
    return 0.5 * (1.0 + math.tanh(50.0 * relative_delta(outcome)))


@REWARDS.register
def paper_v2(outcome: Outcome) -> float:
    """ML-Agent v2: linear in delta / gap, in [-1, 1]."""
    if outcome.kind in FAILURES:
        return -1.0
    if outcome.kind is not OutcomeKind.SCORED:
        return 0.0
    return max(-1.0, min(1.0, relative_delta(outcome)))


@REWARDS.register
def improvement(
    outcome: Outcome,
    *,
    unchanged: Annotated[float, "Reward of a step that leaves the score as it was.", Range(0, 1)] = 0.1,
    neutral: Annotated[float, "Reward between losses and gains; `unchanged` if that is higher.", Range(0, 1)] = 0.5,
    slope: Annotated[float, "Steepness of gains and losses.", Range(0, open_low=True)] = 2.0,
    least: Annotated[float, "Share of the gap up to which a change of the score is none.", Range(0, 1)] = 0.01,
) -> float:
    """Default: in [0, 1], rises with delta, distinguishes small gains from large ones, pays nothing for no change.

    With x = tanh(slope * delta / gap), u = unchanged and n = max(neutral, unchanged):

        invalid action                                             0
        script that fails or exceeds any limit                     u / 2
        no change: nothing edited, or |delta| within noise, least  u
        loss                                                       u + (n - u) * (1 + x)
        gain                                                       n + (1 - n) * x

    The reward of an edit depends on its effect on the score, not on its text, so a comment earns as much as reading a
    file: u. Every change that runs earns at least u, and a loss of the whole gap 0.11, so doing nothing never pays more
    than trying. With `neutral` equal to `unchanged` every loss earns u, so that gains alone count.
    """
    if outcome.kind is OutcomeKind.INVALID_ACTION:
        return 0.0
    if outcome.kind is OutcomeKind.SCRIPT_ERROR or outcome.kind in LIMITS:
        return unchanged / 2
    if not changes_the_score(outcome, least):
        return unchanged
    neutral, moved = max(neutral, unchanged), math.tanh(slope * relative_delta(outcome))
    return neutral + (1 - neutral) * moved if moved > 0 else unchanged + (neutral - unchanged) * (1 + moved)


@REWARDS.register
def staged(
    outcome: Outcome,
    *,
    weight: Annotated[float, "Share of the reward that stages make; `improvement` makes the rest.", Range(0, 1)] = 0.2,
) -> float:
    """`improvement`, with partial credit for the stages that a step reached, so that failures differ.

    The host observes each stage itself (`Outcome.progress`), for example whether a file exists or the grader accepts
    it.
    Nothing that a script prints is a stage. A script that exceeds a limit gets no credit beyond `started`, so that a
    limit never earns more than an error.
    """
    reached = [stage for stage in STAGES if stage in outcome.progress]
    if outcome.kind in LIMITS:
        reached = reached[: STAGES.index("started") + 1]
    return (1 - weight) * improvement(outcome) + weight * len(reached) / len(STAGES)


@REWARDS.register
def noise(outcome: Outcome) -> float:
    """A control, uniform in [0, 1]: training on it must not improve anything. Depends on the outcome's texts only."""
    return int(digest([outcome.snapshot, outcome.observation, outcome.diff])[:8], 16) / 0xFFFFFFFF
