"""The state pool, from which step-wise RL draws its states.

It starts with the expert's states. With `refresh_fraction` above 0, states that the policy reached are added, and the
oldest of them are removed. The pool is plain data: `to_dict` is part of every checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from environments.protocol import State
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.stages import PoolConfig


class StatePool:
    """States to act in, drawn balanced over tasks and depths.

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
        self._reached: dict[str, State] = {}
        """By id, the longest not reached first."""
        self._spread: dict[str, float] = {}
        """Standard deviation of the rewards last seen from a state."""

    def __len__(self) -> int:
        return len(self._expert) + len(self._reached)

    def sample(self, rng: np.random.Generator, count: int) -> list[State]:
        """`count` states, without repetition while there are enough: a task uniformly, a depth, one of its states."""
        own = round(count * self._config.refresh_fraction) if self._reached else 0
        return self._draw(rng, list(self._reached.values()), own) + self._draw(rng, self._expert, count - own)

    def learn(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """Note the rewards of several actions from a state, by state id."""
        self._spread.update({state: float(np.std(values)) for state, values in rewards.items() if len(values) > 1})

    def reach(self, states: Iterable[State]) -> None:
        """Add states that the policy reached; one that is reached again becomes the newest."""
        for state in states:
            if len(state.history) <= self._config.max_depth:
                self._reached.pop(state.id, None)
                self._reached[state.id] = state
        for oldest in list(self._reached)[: -self._config.refresh_size]:
            del self._reached[oldest]

    def to_dict(self) -> dict[str, Any]:
        """The expert's states by id alone: they are told for who looks into the pool."""
        return {
            "expert": [state.id for state in self._expert],
            "reached": [state.to_dict() for state in self._reached.values()],
            "spread": self._spread,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from `to_dict` of the pool over the same expert states."""
        self._reached = {state.id: state for state in map(State.from_dict, data["reached"])}
        self._spread = dict(data["spread"])

    def _draw(self, rng: np.random.Generator, states: Sequence[State], count: int) -> list[State]:
        by_task: dict[str, list[State]] = {}
        for state in states:
            by_task.setdefault(state.task, []).append(state)
        queues: dict[str, list[int]] = {task: [] for task in by_task}
        drawn: list[State] = []
        while len(drawn) < count:
            for task in rng.permutation(sorted(queues)):
                members, order = by_task[str(task)], queues[str(task)]
                if not order:
                    order.extend(self._order(rng, members))
                drawn.append(members[order.pop(0)])
                if len(drawn) == count:
                    break
        return drawn

    def _order(self, rng: np.random.Generator, members: Sequence[State]) -> list[int]:
        """An order to draw a task's states in, without replacement.

        Depths of each kind of step in turn, or the deep ones, of which there are most, would be nearly all that is
        trained on. Within a depth uniformly, or by learnability: in proportion to the spread of rewards; states not
        seen yet count as 0.25.
        """
        by_depth: dict[tuple[str, int], list[int]] = {}
        for index, state in enumerate(members):
            by_depth.setdefault((state.operator, len(state.history)), []).append(index)
        kinds, queues = sorted(by_depth), []
        for place in rng.permutation(len(kinds)):
            depth, weights = kinds[place], None
            if self._config.sampling == "learnability":
                spread = [self._spread.get(members[index].id, 0.25) + 0.02 for index in by_depth[depth]]
                weights = np.asarray(spread) / np.sum(spread)
            queues.append(rng.choice(by_depth[depth], size=len(by_depth[depth]), replace=False, p=weights))
        turns = itertools.zip_longest(*queues)
        return [int(index) for turn in turns for index in turn if index is not None]
