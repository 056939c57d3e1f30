"""The state pool: where the states of step-wise RL come from.

The expert's states come first. With `refresh_fraction` above 0, states that the policy itself reached enter too, and
the oldest of them leave. The pool is plain data: `to_dict` goes into every checkpoint.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from environments.protocol import State
from mlagent_jax.config import PoolConfig
from mlagent_jax.data.trajectories import Record
from mlagent_jax.errors import ConfigError


def expert_states(records: Iterable[Record], max_depth: int) -> list[State]:
    """Distinct states of `records` at most `max_depth` steps deep, without their ideas, in order of appearance."""
    found: dict[str, State] = {}
    for record in records:
        if len(record.state.history) <= max_depth:
            state = dataclasses.replace(record.state, ideas=())
            found.setdefault(state.id, state)
    return list(found.values())


class StatePool:
    """States to act in, drawn balanced over tasks.

    Args:
      states: the expert's.
      config: how they are drawn, and how many of the policy's own are kept.

    Raises:
      ConfigError: there are no states.
    """

    def __init__(self, states: Sequence[State], config: PoolConfig) -> None:
        if not states:
            raise ConfigError(
                "the state pool is empty: no collected state is within config.pool.max_depth and the prompt"
            )
        self._config = config
        self._expert = list(states)
        self._reached: collections.deque[State] = collections.deque(maxlen=config.refresh_size)
        self._spread: dict[str, float] = {}
        """Standard deviation of the rewards last seen from a state."""

    def __len__(self) -> int:
        return len(self._expert) + len(self._reached)

    def sample(self, rng: np.random.Generator, count: int) -> list[State]:
        """`count` states, without repetition while there are enough: a task uniformly, then one of its states."""
        own = round(count * self._config.refresh_fraction) if self._reached else 0
        return self._draw(rng, self._reached, own) + self._draw(rng, self._expert, count - own)

    def learn(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """Note the rewards of several actions from a state, by state id."""
        self._spread.update({state: float(np.std(values)) for state, values in rewards.items() if len(values) > 1})

    def reach(self, states: Iterable[State]) -> None:
        """Add states that the policy reached."""
        self._reached.extend(state for state in states if len(state.history) <= self._config.max_depth)

    def to_dict(self) -> dict[str, Any]:
        return {"reached": [state.to_dict() for state in self._reached], "spread": self._spread}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from `to_dict` of the pool over the same expert states."""
        self._reached = collections.deque(map(State.from_dict, data["reached"]), maxlen=self._config.refresh_size)
        self._spread = dict(data["spread"])

    def _draw(self, rng: np.random.Generator, states: Sequence[State], count: int) -> list[State]:
        by_task: dict[str, list[State]] = {}
        for state in states:
            by_task.setdefault(state.task, []).append(state)
        queues = {task: list(rng.permutation(len(members))) for task, members in by_task.items()}
        if self._config.sampling == "learnability":
            queues = {task: self._by_learnability(rng, members) for task, members in by_task.items()}
        drawn: list[State] = []
        while len(drawn) < count:
            for task in rng.permutation(sorted(queues)):
                members = by_task[str(task)]
                order = queues[str(task)]
                if not order:
                    order.extend(rng.permutation(len(members)))
                drawn.append(members[order.pop(0)])
                if len(drawn) == count:
                    break
        return drawn

    def _by_learnability(self, rng: np.random.Generator, members: Sequence[State]) -> list[int]:
        """An order drawn without replacement, in proportion to the spread of rewards; unseen states count as 0.25."""
        weights = np.asarray([self._spread.get(state.id, 0.25) for state in members]) + 0.02
        return list(rng.choice(len(members), size=len(members), replace=False, p=weights / weights.sum()))
