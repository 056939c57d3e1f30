"""What the state pool of a run holds: read from its newest checkpoint of rl, the expert's steps, and the steps of rl up
to that checkpoint."""

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
from mlagent_jax.rl.state_pool import expert_states
from mlagent_jax.runtime import jsonl
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import TrajectoryStore

_SHORT = 10
"""Characters of an id, in lists here and on the page."""


@dataclasses.dataclass(frozen=True)
class Held:
    """A state in the pool."""

    state: State
    own: bool
    """Reached by the policy itself; else the expert's."""
    entered: int
    """Iteration of rl that reached it, the last one where several did; 0: there from the start."""
    drawn: Drawn | None
    """What came of acting in it; None: it was not drawn yet."""

    def to_dict(self) -> dict[str, Any]:
        """A row of the list."""
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
    """The pool of a run."""

    iteration: int | None
    """Of the checkpoint; None: there is none yet, and the pool is what rl begins with, but for states whose prompts are
    too long."""
    held: tuple[Held, ...]
    """States drawn last first, then those that entered last."""

    def find(self, prefix: str) -> Held:
        """The state whose id begins so.

        Raises:
          ValueError: none does, or several.
        """
        found = {held.state.id: held for held in self.held if held.state.id.startswith(prefix)}
        if len(found) != 1:
            what = f"{len(found)} states of the pool begin" if found else "no state of the pool begins"
            raise ValueError(f"{what} with {prefix!r}: ids are in the list, --count=0 shows it whole")
        return next(iter(found.values()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "expert": sum(not held.own for held in self.held),
            "own": sum(held.own for held in self.held),
            "cells": self.cells(),
            "states": [held.to_dict() for held in self.held],
        }

    def cells(self) -> list[dict[str, Any]]:
        """By task and depth: how many states there are, how many of them were drawn, and what came of it. `reward` is
        the mean of all actions, `spread` that of the states; `age` of the policy's own states in iterations."""
        groups: dict[tuple[str, int], list[Held]] = {}
        for held in self.held:
            groups.setdefault((held.state.task_name, len(held.state.history)), []).append(held)
        return [self._cell(*place, groups[place]) for place in sorted(groups)]

    def _cell(self, task: str, depth: int, members: list[Held]) -> dict[str, Any]:
        drawn = [held.drawn for held in members if held.drawn is not None]
        rewarded = sum(each.rewarded for each in drawn)
        spreads = [each.spread for each in drawn if each.spread is not None]
        ages = [(self.iteration or 0) - held.entered for held in members if held.own]
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
    """The pool of the run in `workdir`.

    Raises:
      FileNotFoundError: no run is there.
      ConfigError: it has no expert's steps.
      CheckpointError, RecordError: a file of it is broken.
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
    held = [Held(state, False, 0, table.drawn(state.id)) for state in expert]
    for state in map(State.from_dict, saved.get("reached", ())):
        held.append(Held(state, True, entered.get(state.id, 0), table.drawn(state.id)))
    held.sort(key=lambda each: (-(each.drawn.last if each.drawn else 0), -each.entered))
    return Pool(iteration, tuple(held))


def _newest(folder: epath.Path) -> tuple[int | None, Mapping[str, Any]]:
    """The newest checkpoint of rl, and what it tells of the pool."""
    if not folder.exists():
        return None, {}
    with Checkpointer(folder, read_only=True) as saved:
        step = saved.latest()
        return (None, {}) if step is None else (step, saved.extra(step=step)["pool"])


def pool_text(pool: Pool, count: int) -> str:
    """Tables to print: by task and depth, and `count` states one by one (0: all)."""
    told = pool.to_dict()
    when = (
        "before rl (states whose prompts are too long are left out then)"
        if pool.iteration is None
        else f"after iteration {pool.iteration}"
    )
    listed = told["states"][: count or None]
    return "\n\n".join(
        (
            f"{len(pool.held)} states {when}: {told['expert']} of the expert, {told['own']} of the policy's own",
            _table(told["cells"]),
            f"{len(listed)} of them, those drawn last first:",
            _table([state | {"id": state["id"][:_SHORT]} for state in listed]),
        )
    )


def state_text(held: Held) -> str:
    """One state whole, to print."""
    state, row = held.state, held.to_dict()
    lines = [f"{name:<8}{_cell_text(value)}" for name, value in row.items()]
    for number, step in enumerate(state.history, start=1):
        lines += [f"\n--- step {number} of {len(state.history)}: action", step.action.rstrip()]
        lines += ["--- observation", step.observation.rstrip()]
    return printable("\n".join([*lines, "\n--- code", state.script.rstrip()]))


def _table(rows: list[dict[str, Any]]) -> str:
    return markdown(list(rows[0]) if rows else [], [[_cell_text(value) for value in row.values()] for row in rows])


def _cell_text(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
