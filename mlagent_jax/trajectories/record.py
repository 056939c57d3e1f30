"""Recorded steps: prompt, action and outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Self

from environments.protocol import Job, Outcome, State


@dataclasses.dataclass(frozen=True)
class Record:
    """One executed step.

    `split` restricts its use: `train`, or `held_in` / `held_out` (states of the fixed evaluation).
    """

    stage: str
    split: str
    task: str
    trajectory: int
    step: int
    prompt: str
    state: State
    action: str
    outcome: Outcome
    target: bool = True
    """Whether the action may be imitated; False for a deliberate error of the expert."""
    run: str = ""
    """Name of the run that executed the step; trajectories are numbered within a run."""

    @classmethod
    def of(cls, job: Job, outcome: Outcome, **fields: Any) -> Self:
        return cls(task=job.state.task_name, state=job.state, action=job.action, outcome=outcome, run=job.run, **fields)

    @property
    def next_state(self) -> State:
        """Return the state after the step."""
        return self.outcome.next_state(Job(self.run, 0, self.state, self.trajectory, self.action))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "state": State.from_dict(data["state"]), "outcome": Outcome.from_dict(data["outcome"])})


def expert_states(records: Iterable[Record], max_depth: int) -> list[State]:
    """Return the distinct states of `records`, without their ideas, in order of appearance.

    States deeper than `max_depth` steps are left out.
    """
    states: dict[str, State] = {}
    for record in records:
        if len(record.state.history) <= max_depth:
            state = dataclasses.replace(record.state, ideas=())
            states.setdefault(state.id, state)
    return list(states.values())
