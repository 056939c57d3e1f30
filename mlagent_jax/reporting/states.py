"""States of a run for its page: pool contents by task and depth, and statistics of the actions sampled in them.

All of it follows from the trajectories: the expert's states from the store `collect`; the drawn states, and the
policy's own among them, from `rl.jsonl`. Updated as these files grow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from environments.protocol import State

LISTED = 200
"""Maximum states listed one by one, last drawn first."""


@dataclasses.dataclass
class Drawn:
    """Statistics of one state in which actions were sampled."""

    task: str
    depth: int
    metric: float
    actions: int = 0
    rewarded: int = 0
    total: float = 0.0
    squares: float = 0.0
    last: int = 0

    @property
    def reward(self) -> float | None:
        """Return the mean reward of its actions; None if every execution met an infrastructure error."""
        return self.total / self.rewarded if self.rewarded else None

    @property
    def spread(self) -> float | None:
        """Return the standard deviation of its rewards, the signal to learn from; None with fewer than two."""
        if self.rewarded < 2:
            return None
        return math.sqrt(max(0.0, self.squares / self.rewarded - (self.total / self.rewarded) ** 2))


class StateTable:
    """States of one run."""

    def __init__(self) -> None:
        self._expert: dict[str, tuple[str, int]] = {}
        self._drawn: dict[str, Drawn] = {}

    def add_expert(self, records: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Record the expert's steps and yield them unchanged."""
        for record in records:
            state = record.get("state")
            if isinstance(state, Mapping) and record.get("split") == "train":
                self._expert[_identity(state)] = (record["task"], len(state["history"]))
            yield record

    def add_drawn(self, records: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Record the steps of rl and yield them unchanged."""
        for record in records:
            state = record.get("state")
            if isinstance(state, Mapping):
                self._note(_identity(state), state, record)
            yield record

    def forget_drawn(self) -> None:
        """Forget rl's steps: their file was replaced."""
        self._drawn.clear()

    def forget_expert(self) -> None:
        """Forget the expert's steps: their file was replaced."""
        self._expert.clear()

    def drawn(self, identity: str) -> Drawn | None:
        """Return the statistics of the state with that id, if actions were sampled in it."""
        return self._drawn.get(identity)

    def to_dict(self, max_depth: int | None) -> dict[str, Any]:
        """Return data for the page: totals, cells by task and depth, and the last drawn states one by one.

        Args:
          max_depth: `config.pool.max_depth`; deeper expert states are not in the pool. None: no limit.
        """
        expert = {i: place for i, place in self._expert.items() if max_depth is None or place[1] <= max_depth}
        cells: dict[tuple[str, int], dict[str, Any]] = {}

        def cell(task: str, depth: int) -> dict[str, Any]:
            empty = {"task": task, "depth": depth, "expert": 0, "own": 0, "drawn": 0, "actions": 0}
            return cells.setdefault((task, depth), empty)

        for task, depth in expert.values():
            cell(task, depth)["expert"] += 1
        sums: dict[tuple[str, int], list[Drawn]] = {}
        for identity, state in self._drawn.items():
            counts = cell(state.task, state.depth)
            counts["drawn"] += 1
            counts["own"] += bool(expert) and identity not in expert
            counts["actions"] += state.actions
            sums.setdefault((state.task, state.depth), []).append(state)
        for place, states in sums.items():
            rewarded = sum(state.rewarded for state in states)
            cells[place]["reward"] = round(sum(state.total for state in states) / rewarded, 4) if rewarded else None
            spreads = [state.spread for state in states if state.spread is not None]
            cells[place]["spread"] = round(sum(spreads) / len(spreads), 4) if spreads else None
        newest = sorted(self._drawn.items(), key=lambda item: (-item[1].last, item[1].task, item[0]))[:LISTED]
        return {
            "expert": len(expert),
            "drawn": len(self._drawn),
            "own": sum(identity not in expert for identity in self._drawn) if expert else 0,
            "cells": [cells[place] for place in sorted(cells)],
            "newest": [_listed(identity, state, bool(expert) and identity not in expert) for identity, state in newest],
        }

    def _note(self, identity: str, state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        drawn = self._drawn.get(identity)
        if drawn is None:
            drawn = Drawn(record["task"], len(state["history"]), float(state["metric"]))
            self._drawn[identity] = drawn
        drawn.actions += 1
        drawn.last = max(drawn.last, record.get("step", 0))
        reward = record["outcome"]["reward"]
        if reward is not None:
            drawn.rewarded, drawn.total, drawn.squares = (
                drawn.rewarded + 1,
                drawn.total + reward,
                drawn.squares + reward**2,
            )


def _listed(identity: str, state: Drawn, own: bool) -> dict[str, Any]:
    listed = {
        "id": identity[:10],
        "task": state.task,
        "depth": state.depth,
        "own": own,
        "metric": state.metric,
        "actions": state.actions,
        "reward": None if state.reward is None else round(state.reward, 4),
        "spread": None if state.spread is None else round(state.spread, 4),
        "last": state.last,
    }
    return {name: value for name, value in listed.items() if value is not None and value is not False}


def _identity(state: Mapping[str, Any]) -> str:
    """Return `State.id` of a recorded state without its ideas, as in the pool."""
    return State.from_dict({**state, "ideas": ()}).id
