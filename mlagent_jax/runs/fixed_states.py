"""Fixed states of an evaluation: states of the expert's trajectories, balanced over tasks and depths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from environments.protocol import State
from mlagent_jax.runs.run import Run


def fixed_states(run: Run, split: str, count: int, fits: Callable[[State], bool]) -> list[State]:
    """Pick `count` of the expert's states in tasks of `split`, or all if there are fewer.

    Args:
      run: Open run.
      split: `held_in` or `held_out`.
      count: Maximum number; 0: none.
      fits: Whether a state's prompt is within the limit.

    Raises:
      ConfigError: A state's workspace is not in the run's store.
    """
    if not count:
        return []
    states: list[State] = []
    for record in run.expert_records():
        state = dataclasses.replace(record.state, ideas=())
        # Trajectories of one task share their first state; it counts once.
        if record.split == split and state not in states and fits(state):
            states.append(state)
    states = _spread(states, count)
    run.check_snapshots(states)
    return states


def _spread(states: list[State], count: int) -> list[State]:
    """Return `count` of `states`, evenly spaced in their order, to cover every task and depth."""
    if len(states) <= count:
        return states
    return [states[math.floor(i * len(states) / count)] for i in range(count)]
