"""Pool of states that step-wise RL samples actions from.

The pool starts with the expert's states. With `refresh_fraction` above 0, states that the policy reached are added, and
the oldest of these are removed. The pool is plain data: `to_dict` is part of every checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from environments.protocol import State
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.stages import PoolConfig

_UNSEEN_SPREAD = 0.25
"""Assumed spread of a state's rewards, if no rewards of the state, its task or its kind are known."""
_LEAST_SPREAD = 0.02
"""Added to each spread, so that every state has a chance to be drawn."""


class StatePool:
    """States to act in, drawn with balance over tasks and depths.

    Args:
      states: The expert's states.
      config: Sampling of the states, and size of the refreshed part.
      kinds: Kind of data by task. A task without known rewards uses the mean spread of its kind.

    Raises:
      ConfigError: `states` is empty.
    """

    def __init__(self, states: Sequence[State], config: PoolConfig, kinds: Mapping[str, str] | None = None) -> None:
        if not states:
            raise ConfigError(
                "the state pool is empty: no collected state is within config.pool.max_depth and the prompt"
            )
        self._config = config
        self._kinds = kinds or {}
        self._expert = list(states)
        self._reached: dict[str, State] = {}
        """States that the policy reached, by id; the least recently reached first."""
        self._spread: dict[str, float] = {}
        """Standard deviation of the latest rewards from a state, by state id."""

    def __len__(self) -> int:
        return len(self._expert) + len(self._reached)

    def sample(self, rng: np.random.Generator, count: int) -> list[State]:
        """Return `count` states: drawn by task, then by depth, then within the depth.

        A state is repeated only after all states of its task were drawn.
        """
        own = round(count * self._config.refresh_fraction) if self._reached else 0
        return self._draw(rng, list(self._reached.values()), own) + self._draw(rng, self._expert, count - own)

    def learn(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """Record the rewards of the actions from each state, by state id; a single reward has no spread."""
        self._spread.update({state: float(np.std(values)) for state, values in rewards.items() if len(values) > 1})

    def reach(self, states: Iterable[State]) -> None:
        """Add states that the policy reached; a state that is reached again becomes the newest."""
        for state in states:
            if len(state.history) <= self._config.max_depth:
                self._reached.pop(state.id, None)
                self._reached[state.id] = state
        for oldest in list(self._reached)[: -self._config.refresh_size]:
            del self._reached[oldest]

    def to_dict(self) -> dict[str, Any]:
        """Return the state that a resume needs, and the ids of the expert's states for readers of a checkpoint."""
        return {
            "expert": [state.id for state in self._expert],
            "reached": [state.to_dict() for state in self._reached.values()],
            "spread": self._spread,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Restore the state of `to_dict` of a pool with the same expert states."""
        self._reached = {state.id: state for state in map(State.from_dict, data["reached"])}
        self._spread = dict(data["spread"])

    def _draw(self, rng: np.random.Generator, states: Sequence[State], count: int) -> list[State]:
        by_task: dict[str, list[State]] = {}
        for state in states:
            by_task.setdefault(state.task, []).append(state)
        queues: dict[str, list[int]] = {task: [] for task in by_task}
        spread, names, weights = self._estimates(states), sorted(by_task), None
        if self._config.sampling == "learnability" and len(names) > count:
            # There are more tasks than draws: tasks whose rewards vary are more likely to come first.
            means = np.array([np.mean([spread[state.id] for state in by_task[name]]) for name in names]) + _LEAST_SPREAD
            weights = means / means.sum()
        drawn: list[State] = []
        while len(drawn) < count:
            turns = rng.permutation(names) if weights is None else rng.choice(names, len(names), False, weights)
            for task in turns:
                members, order = by_task[str(task)], queues[str(task)]
                if not order:
                    order.extend(self._order(rng, members, spread))
                drawn.append(members[order.pop(0)])
                if len(drawn) == count:
                    break
        return drawn

    def _estimates(self, states: Sequence[State]) -> dict[str, float]:
        """Return the spread of rewards by state id.

        The first known one counts: the state's own, the mean of its task, the mean of its kind, `_UNSEEN_SPREAD`.
        """
        seen: dict[str, list[float]] = {}
        for state in states:
            if state.id in self._spread:
                for group in (state.task, self._kinds.get(state.task, "")):
                    seen.setdefault(group, []).append(self._spread[state.id])
        means = {group: float(np.mean(values)) for group, values in seen.items()}

        def estimate(state: State) -> float:
            kind = self._kinds.get(state.task)
            shared = means.get(kind, _UNSEEN_SPREAD) if kind else _UNSEEN_SPREAD
            return self._spread.get(state.id, means.get(state.task, shared))

        return {state.id: estimate(state) for state in states}

    def _order(self, rng: np.random.Generator, members: Sequence[State], spreads: Mapping[str, float]) -> list[int]:
        """Return a random order of a task's states, as indices into `members`.

        Depths of each operator alternate, since otherwise the deep states, which are the most frequent, would make up
        nearly all draws. Within a depth, states are drawn uniformly, or with "learnability" in proportion to their
        spread of rewards (`_estimates`).
        """
        by_depth: dict[tuple[str, int], list[int]] = {}
        for index, state in enumerate(members):
            by_depth.setdefault((state.operator, len(state.history)), []).append(index)
        kinds, queues = sorted(by_depth), []
        for place in rng.permutation(len(kinds)):
            depth, weights = kinds[place], None
            if self._config.sampling == "learnability":
                spread = [spreads[members[index].id] + _LEAST_SPREAD for index in by_depth[depth]]
                weights = np.asarray(spread) / np.sum(spread)
            queues.append(rng.choice(by_depth[depth], size=len(by_depth[depth]), replace=False, p=weights))
        turns = itertools.zip_longest(*queues)
        return [int(index) for turn in turns for index in turn if index is not None]
