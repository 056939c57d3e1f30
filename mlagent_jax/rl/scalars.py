"""What is told of a batch: rewards by task and by outcome, over what is not masked."""

from __future__ import annotations

from collections.abc import Sequence

from environments.protocol import Outcome, OutcomeKind
from environments.rewards import changes_the_score
from mlagent_jax.agents.job_client import is_masked
from mlagent_jax.rl.in_flight import TrainingRow

ENDED_WELL = (OutcomeKind.NO_EDIT, OutcomeKind.SCORED)


def task_scalars(taken: Sequence[TrainingRow]) -> dict[str, float]:
    """Mean reward by task, over what is not masked."""
    rewards: dict[str, list[float]] = {}
    for row in taken:
        if row.reward is not None:
            rewards.setdefault(row.action.state.task_name, []).append(row.reward)
    return {f"task_{name}": sum(values) / len(values) for name, values in rewards.items()}


def operator_scalars(taken: Sequence[TrainingRow]) -> dict[str, float]:
    """Return the mean reward and the share of valid actions by kind of step, over what is not masked; none where steps
    have no kinds."""
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
    """Groups of two or more rows whose rewards are all equal, over what is not masked: comparing them says nothing."""
    rewards: dict[int, list[float]] = {}
    for row in taken:
        if row.reward is not None:
            rewards.setdefault(row.group, []).append(row.reward)
    return {group for group, seen in rewards.items() if len(seen) > 1 and min(seen) == max(seen)}


def group_scalars(taken: Sequence[TrainingRow]) -> dict[str, float]:
    """Share of the groups that say nothing."""
    return {"silent_groups": len(silent_groups(taken)) / max(1, len({row.group for row in taken}))}


def outcome_scalars(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean reward, over all and by outcome, and the share of each outcome, over what is not masked.

    `unchanged` is the share of steps that ended well and left the score as it was: looks, comments, edits of no effect.
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
