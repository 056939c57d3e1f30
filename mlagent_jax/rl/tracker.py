"""A mean reward for each state over the batches of a run: the baseline where a state is acted in once.

    D   = KL in nats a token that the policy moved since the state was last acted in, summed over updates
    s   = clip(2^(-D / half_life), low, high)       the share of a memory that is left
    n'  = s * n + m                                 after m actions of mean reward r
    v'  = (s * n * v + m * r) / n'

For rewards of 0 and 1 this is the Beta posterior of SPO (Xu and Ding 2025, arXiv 2509.13232), n = alpha +
beta. The paper compares the two policies on the state itself; here the KL of each update over its whole batch stands in
for that. A state that was never acted in has the mean of all that are tracked, 0 at first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlagent_jax.rl.in_flight import TrainingRow


class ValueTracker:
    """Tracks values by state id.

    Args:
      half_life: nats a token.
      low: smallest share of a memory that is left.
      high: largest share of a memory that is left.
    """

    def __init__(self, half_life: float, low: float, high: float) -> None:
        self._half_life, self._low, self._high = half_life, low, high
        self._moved = 0.0
        self._states: dict[str, tuple[float, float, float]] = {}
        """By id: value, count, and how far the policy had moved."""

    def baselines(self, taken: Sequence[TrainingRow]) -> list[float]:
        """Returns the value of each row's state before these rows."""
        total = sum(count for _, count, _ in self._states.values())
        mean = sum(value * count for value, count, _ in self._states.values()) / total if total else 0.0
        return [self._states.get(row.action.state.id, (mean, 0.0, 0.0))[0] for row in taken]

    def learn(self, taken: Sequence[TrainingRow], moved: float) -> None:
        """Learns the rewards of rows that were trained on; the update moved the policy by so many nats a token."""
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
        """Goes on from `to_dict`, also after it was JSON."""
        self._moved = data["moved"]
        self._states = {state: (value, count, moved) for state, (value, count, moved) in data["states"].items()}
