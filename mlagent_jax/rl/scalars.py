"""Scalars of a batch for the metrics: rewards and shares by task, operator and outcome. Masked rows are excluded."""

from __future__ import annotations

from collections.abc import Sequence

from environments.protocol import Outcome, OutcomeKind
from environments.rewards import changes_the_score
from mlagent_jax.agents.job_client import is_masked
from mlagent_jax.rl.in_flight import TrainingRow

ENDED_WELL = (OutcomeKind.NO_EDIT, OutcomeKind.SCORED)


def task_scalars(taken: Sequence[TrainingRow]) -> dict[str, float]:
    """Return the mean reward of each task."""
    rewards: dict[str, list[float]] = {}
    for row in taken:
        if row.reward is not None:
            rewards.setdefault(row.action.state.task_name, []).append(row.reward)
    return {f"task_{name}": sum(values) / len(values) for name, values in rewards.items()}


def operator_scalars(taken: Sequence[TrainingRow]) -> dict[str, float]:
    """Return the mean reward and the share of valid actions of each operator; an empty dict if no row has one."""
    rows: dict[str, list[TrainingRow]] = {}
    for row in taken:
        if row.reward is not None and row.action.state.operator:
            rows.setdefault(row.action.state.operator, []).append(row)
    rewards = {f"operator_{name}": sum(row.reward for row in seen) / len(seen) for name, seen in rows.items()}
    valid = {
        f"operator_{name}_valid": sum(row.outcome.kind is not OutcomeKind.INVALID_ACTION for row in seen) / len(seen)
        for name, seen in rows.items()
    }
    return rewards | valid


def silent_groups(taken: Sequence[TrainingRow]) -> set[int]:
    """Return the silent groups: those of two or more rows with equal rewards, whose comparison gives no signal."""
    rewards: dict[int, list[float]] = {}
    for row in taken:
        if row.reward is not None:
            rewards.setdefault(row.group, []).append(row.reward)
    return {group for group, seen in rewards.items() if len(seen) > 1 and min(seen) == max(seen)}


def speaking_groups(taken: Sequence[TrainingRow]) -> set[int]:
    """Return the groups with a signal: those of two or more rows that count, with different rewards."""
    rewards: dict[int, set[float]] = {}
    for row in taken:
        if row.reward is not None:
            rewards.setdefault(row.group, set()).add(row.reward)
    return {group for group, seen in rewards.items() if len(seen) > 1}


def group_scalars(taken: Sequence[TrainingRow]) -> dict[str, float]:
    """Return the share of groups that are silent."""
    return {"silent_groups": len(silent_groups(taken)) / max(1, len({row.group for row in taken}))}


def outcome_scalars(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the mean reward, overall and for each kind of outcome, and the share of each kind.

    `unchanged` is the share of steps that succeeded without changing the score: looks at files, comments, edits without
    effect. `masked` is a number of outcomes.
    """
    counted = [outcome for outcome in outcomes if not is_masked(outcome)]
    size = max(1, len(counted))
    shares = {f"share_{kind}": sum(o.kind is kind for o in counted) / size for kind in OutcomeKind}
    rewards: dict[str, list[float]] = {}
    for outcome in counted:
        rewards.setdefault(f"reward_{outcome.kind}", []).append(outcome.reward)
    return (
        shares
        | {name: sum(values) / len(values) for name, values in rewards.items()}
        | {
            "reward": sum(o.reward for o in counted) / size,
            "unchanged": sum(o.kind in ENDED_WELL and not changes_the_score(o) for o in counted) / size,
            "repaired": sum(bool(o.repairs) for o in counted) / size,
            "valid": 1.0 - shares[f"share_{OutcomeKind.INVALID_ACTION}"],
            "masked": len(outcomes) - len(counted),
        }
    )
