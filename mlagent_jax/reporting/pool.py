"""Contents of a run's state pool, read from its newest rl checkpoint, the expert's steps, and the rl steps up to that
checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from environments.interfaces.terminal import printable
from environments.protocol import State
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.reporting import records
from mlagent_jax.reporting.states import Drawn, StateTable
from mlagent_jax.reporting.table import markdown
from mlagent_jax.runtime import jsonl
from mlagent_jax.trajectories.record import Record, expert_states
from mlagent_jax.trajectories.store import TrajectoryStore

_SHORT = 10
"""Length of a shortened id in lists and on the page."""


@dataclasses.dataclass(frozen=True)
class PooledState:
    """State in the pool."""

    state: State
    own: bool
    """Whether the policy itself reached it; otherwise the expert did."""
    entered: int
    """Last rl iteration that reached it; 0: in the pool from the start."""
    drawn: Drawn | None
    """Statistics of the actions sampled in it; None: not drawn yet."""

    def to_dict(self) -> dict[str, Any]:
        """Return a row of the list."""
        drawn = self.drawn
        return {
            "id": self.state.id,
            "task": self.state.task_name,
            "depth": len(self.state.history),
            "from": "policy" if self.own else "expert",
            "metric": self.state.metric,
            "entered": self.entered,
            "actions": drawn.actions if drawn else 0,
            "reward": drawn.reward if drawn else None,
            "spread": drawn.spread if drawn else None,
            "last": drawn.last if drawn else None,
        }


@dataclasses.dataclass(frozen=True)
class Pool:
    """State pool of a run."""

    iteration: int | None
    """Iteration of the checkpoint. None: there is none yet, and the pool is the initial one, including states whose
    prompts are too long."""
    states: tuple[PooledState, ...]
    """States, last drawn first, then last entered first."""

    def find(self, prefix: str) -> PooledState:
        """Return the state whose id starts with `prefix`.

        Raises:
          ValueError: None does, or several.
        """
        matches = {pooled.state.id: pooled for pooled in self.states if pooled.state.id.startswith(prefix)}
        if len(matches) != 1:
            what = f"{len(matches)} states of the pool begin" if matches else "no state of the pool begins"
            raise ValueError(f"{what} with {prefix!r}: ids are in the list, --count=0 shows it whole")
        return next(iter(matches.values()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "expert": sum(not pooled.own for pooled in self.states),
            "own": sum(pooled.own for pooled in self.states),
            "cells": self.cells(),
            "states": [pooled.to_dict() for pooled in self.states],
        }

    def cells(self) -> list[dict[str, Any]]:
        """Return counts and statistics by task and depth. `reward` is the mean of all actions, `spread` the mean over
        states, `age` that of the policy's own states in iterations."""
        groups: dict[tuple[str, int], list[PooledState]] = {}
        for pooled in self.states:
            groups.setdefault((pooled.state.task_name, len(pooled.state.history)), []).append(pooled)
        return [self._cell(*place, groups[place]) for place in sorted(groups)]

    def _cell(self, task: str, depth: int, members: list[PooledState]) -> dict[str, Any]:
        drawn = [pooled.drawn for pooled in members if pooled.drawn is not None]
        rewarded = sum(each.rewarded for each in drawn)
        spreads = [each.spread for each in drawn if each.spread is not None]
        ages = [(self.iteration or 0) - pooled.entered for pooled in members if pooled.own]
        return {
            "task": task,
            "depth": depth,
            "expert": len(members) - len(ages),
            "own": len(ages),
            "drawn": len(drawn),
            "actions": sum(each.actions for each in drawn),
            "reward": sum(each.total for each in drawn) / rewarded if rewarded else None,
            "spread": sum(spreads) / len(spreads) if spreads else None,
            "age": sum(ages) / len(ages) if ages else None,
        }


def read_pool(workdir: epath.PathLike) -> Pool:
    """Read the pool of the run in `workdir`.

    Raises:
      FileNotFoundError: There is no run.
      ConfigError: The run has no expert steps.
      CheckpointError, RecordError: A file of it is broken.
    """
    root = epath.Path(workdir)
    if not (root / "config.json").exists():
        raise FileNotFoundError(f"workdir {str(workdir)!r} holds no run: give the folder that a run wrote")
    config = records.read_object(root / "config.json")
    iteration, saved = _newest(root / "checkpoints" / "rl")
    store = TrajectoryStore.open(epath.Path(config["pool"]["trajectories"] or root) / "trajectories" / "collect")
    max_depth = 0 if config["rl"]["rollout"] == "episode" else config["pool"]["max_depth"]
    expert = expert_states((record for record in store if record.split == "train"), max_depth)
    if "expert" in saved:
        kept = set(saved["expert"])
        expert = [state for state in expert if state.id in kept]
    table, entered = StateTable(), {}
    steps = jsonl.iterate(root / "trajectories" / "rl.jsonl")
    for step in table.add_drawn(step for step in steps if step["step"] <= (iteration or 0)):
        entered[Record.from_dict(step).next_state.id] = step["step"]
    states = [PooledState(state, False, 0, table.drawn(state.id)) for state in expert]
    for state in map(State.from_dict, saved.get("reached", ())):
        states.append(PooledState(state, True, entered.get(state.id, 0), table.drawn(state.id)))
    states.sort(key=lambda each: (-(each.drawn.last if each.drawn else 0), -each.entered))
    return Pool(iteration, tuple(states))


def _newest(folder: epath.Path) -> tuple[int | None, Mapping[str, Any]]:
    """Return the newest rl checkpoint's iteration and its pool."""
    if not folder.exists():
        return None, {}
    with Checkpointer(folder, read_only=True) as saved:
        step = saved.latest()
        return (None, {}) if step is None else (step, saved.extra(step=step)["pool"])


def pool_text(pool: Pool, count: int) -> str:
    """Return tables to print: by task and depth, and `count` states one by one (0: all)."""
    view = pool.to_dict()
    when = (
        "before rl (states whose prompts are too long are left out then)"
        if pool.iteration is None
        else f"after iteration {pool.iteration}"
    )
    listed = view["states"][: count or None]
    return "\n\n".join(
        (
            f"{len(pool.states)} states {when}: {view['expert']} of the expert, {view['own']} of the policy's own",
            _table(view["cells"]),
            f"{len(listed)} of them, those drawn last first:",
            _table([state | {"id": state["id"][:_SHORT]} for state in listed]),
        )
    )


def state_text(pooled: PooledState) -> str:
    """Return one whole state, to print."""
    state, row = pooled.state, pooled.to_dict()
    lines = [f"{name:<8}{_cell_text(value)}" for name, value in row.items()]
    for number, step in enumerate(state.history, start=1):
        lines += [f"\n--- step {number} of {len(state.history)}: action", step.action.rstrip()]
        lines += ["--- observation", step.observation.rstrip()]
    return printable("\n".join([*lines, "\n--- code", state.script.rstrip()]))


def _table(rows: list[dict[str, Any]]) -> str:
    return markdown(list(rows[0]) if rows else [], [[_cell_text(value) for value in row.values()] for row in rows])


def _cell_text(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
