"""The fixed states of an evaluation: what the expert met, evenly over tasks and depths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from environments.protocol import State
from mlagent_jax.runs.run import Run


def fixed_states(run: Run, split: str, count: int, fits: Callable[[State], bool]) -> list[State]:
    """Picks `count` states of the expert's in tasks of `split`, fewer where there are not as many.

    Args:
      run: open.
      split: held_in or held_out.
      count: at most; 0: none.
      fits: whether a state's prompt is within the limit.

    Raises:
      ConfigError: the workspace of one is not in the run's store.
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
    """`count` of `states`, evenly over their order, so that every task and depth is among them."""
    if len(states) <= count:
        return states
    return [states[math.floor(i * len(states) / count)] for i in range(count)]
