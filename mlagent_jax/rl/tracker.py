"""Tracked mean reward of each state over the batches of a run: a baseline for a single action per state.

    D   = KL in nats per token of the policy's updates since the last action from the state, summed
    s   = clip(2^(-D / half_life), low, high)       the remaining weight of the past
    n'  = s * n + m                                 after m actions of mean reward r
    v'  = (s * n * v + m * r) / n'

For rewards of 0 and 1 this is the Beta posterior of SPO (Xu and Ding 2025, arXiv 2509.13232), n = alpha + beta. The
paper compares the two policies on the state itself; here the KL of each update over its whole batch replaces that. A
new state has the mean of all tracked states, at first 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlagent_jax.rl.in_flight import TrainingRow


class ValueTracker:
    """Values by state id.

    Args:
      half_life: KL in nats per token that halves the weight of the past.
      low: minimum remaining weight of the past.
      high: maximum remaining weight of the past.
    """

    def __init__(self, half_life: float, low: float, high: float) -> None:
        self._half_life, self._low, self._high = half_life, low, high
        self._moved = 0.0
        self._states: dict[str, tuple[float, float, float]] = {}
        """Value, count and sum of the policy's updates at the time, by id."""

    def baselines(self, taken: Sequence[TrainingRow]) -> list[float]:
        """Return the value of each row's state before these rows."""
        total = sum(count for _, count, _ in self._states.values())
        mean = sum(value * count for value, count, _ in self._states.values()) / total if total else 0.0
        return [self._states.get(row.action.state.id, (mean, 0.0, 0.0))[0] for row in taken]

    def learn(self, taken: Sequence[TrainingRow], moved: float) -> None:
        """Add the rewards of the rows of an update, which moved the policy by `moved` nats per token."""
        rewards: dict[str, list[float]] = {}
        for row in taken:
            if row.reward is not None:
                rewards.setdefault(row.action.state.id, []).append(row.reward)
        for state, seen in rewards.items():
            value, count, moved_then = self._states.get(state, (0.0, 0.0, self._moved))
            share = 2.0 ** (-(self._moved - moved_then) / self._half_life)
            count *= min(max(share, self._low), self._high)
            value = (count * value + sum(seen)) / (count + len(seen))
            self._states[state] = (value, count + len(seen), self._moved)
        self._moved += max(moved, 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"moved": self._moved, "states": self._states}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Restore the state of `to_dict`, also after a round trip through JSON."""
        self._moved = data["moved"]
        self._states = {state: (value, count, moved) for state, (value, count, moved) in data["states"].items()}
