"""Tasks, before and after preparation.

A `Task` is a recipe. `prepare` runs it once, for a seed, into a folder with everything that a worker needs:

    <root>/<name>@<digest>/
      task.json     TaskSpec, m_init and m_best on both halves, digests
      env/          the agent's starting workspace (scripts); the agent cannot change globs in `spec.read_only`
      public/       data, mounted read-only into the sandbox as `data/`
      private/      hidden labels in two halves, mode 0700: never mounted, never in the queue
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from environments.protocol import Limits, Scale
from environments.tasks.grading import metrics

M_BEST = "m_best.json"
"""File in private/ with the reference's score if there is no reference: a number, or `relative_gain` over the start."""


M_INIT = "m_init.json"
"""File in private/ of a task whose starting script has gaps to fill in and cannot run: its metric, a number."""


class TaskError(ValueError):
    """A task is unknown or its folder is broken. The message names the fault and the remedy."""


class NoHeadroomError(TaskError):
    """The reference does not beat the starting script on both halves of the hidden labels: nothing can be learnt."""


class InvalidSubmissionError(ValueError):
    """The submission cannot be graded. The message says why and reveals nothing of the labels."""


class GraderLimitError(InvalidSubmissionError):
    """The submission alone makes its grader exceed a limit. That depends on the host too, so it is never cached."""


class GraderError(TaskError):
    """A grader failed, and the submission is not known to be the cause.

    The message says where, without the grader's output, which may reveal labels. `details` has the output, for the
    operator alone.
    """

    def __init__(
        self, message: str, details: str = "", *, kind: str = "", host: bool = False, limit: bool = False
    ) -> None:
        """Create the error.

        Args:
          message: where the grader failed.
          details: output of the grader.
          kind: type of the exception, or the limit.
          host: whether no submission can be the cause: the grader cannot be loaded, or a package is missing.
          limit: whether a limit of time or memory was exceeded, or the process was killed.
        """
        super().__init__(message)
        self.details, self.kind, self.host, self.limit = details, kind, host, limit


@dataclasses.dataclass(frozen=True)
class OwnIdea:
    """A candidate edit provided by a task (those of the embedded tasks are in `environments.tasks.generated.ideas`)."""

    text: str
    """Description of the edit in a few words, as in a prompt."""
    cell: str
    """Name of a cell of the entry script."""
    code: str
    """New body of `cell`."""


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Description of a task, without its data."""

    name: str
    kind: str
    """Kind of data: tabular, image, text, time_series or graph."""
    split: str
    """Split of the task: `train` or `held_out`."""
    metric: str
    """Name in `environments.tasks.grading.metrics.METRICS`, which also knows the direction; else `direction` is set."""
    description: str
    """Research problem as the agent reads it in the full profile."""
    traits: str
    """One line of traits for compact prompts, for example `tabular classification, 300 rows, 12 columns, missing`."""
    source: str
    """Origin of the data and how they were changed."""
    entry: str = "train.py"
    """Script that is run and scored."""
    submission: str = "submission.csv"
    read_only: tuple[str, ...] = ("helper.py",)
    limits: Limits = dataclasses.field(default_factory=Limits)
    direction: str = ""
    """Better direction of the task's own metric, `higher` or `lower`; empty if `metric` is one of `METRICS`."""

    gpus: int = 0
    """Number of GPUs of an execution."""
    ideas: tuple[OwnIdea, ...] = ()
    """Ideas offered in addition to the library's suitable ones."""

    @property
    def higher_is_better(self) -> bool:
        return self.direction == "higher" if self.direction else metrics.get(self.metric).higher_is_better

    def to_dict(self) -> dict[str, Any]:
        record = dataclasses.asdict(self)
        for name in ("direction", "gpus", "ideas"):
            if not record[name]:
                del record[name]  # Unset fields are not part of a digest.
        return record

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TaskSpec:
        data = dict(data)
        data["read_only"] = tuple(data["read_only"])
        data["limits"] = Limits.from_dict(data["limits"])
        data["ideas"] = tuple(OwnIdea(**idea) for idea in data.get("ideas", ()))
        return cls(**data)


class Task(Protocol):
    """A recipe for a task."""

    spec: TaskSpec

    def build(self, directory: Path, seed: int) -> TaskSpec:
        """Write env/, public/ and private/ under `directory` for `seed`, and the reference as private/reference.py.

        Deterministic in (recipe, seed). Returns `spec`, completed by its traits, which come from the data.
        """


class PreparedTask(Protocol):
    """A prepared folder, as a worker and a report use it (implemented in `environments.tasks.prepared`)."""

    key: str
    """`name@digest`: digest over spec, data and environment."""
    spec: TaskSpec
    scale: Scale
    """Reference points of the metric on the reward half."""
    report_init: float
    """Score of the starting script on the report half."""
    env: Path
    public: Path

    def grade(self, submission: bytes) -> float:
        """Return the metric on the reward half.

        Raises:
          InvalidSubmissionError: not a readable table, wrong columns, missing, duplicate or unknown ids, NaN, inf...
          GraderError: the grader fails, and the submission is not the cause.
        """

    def grade_report(self, submission: bytes) -> float:
        """Return the metric on the report half; called only for reports."""

    def close(self) -> None:
        """End the grader's processes, if any."""
