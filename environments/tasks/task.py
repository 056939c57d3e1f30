"""What a task is, before and after it is prepared.

A `Task` is a recipe. `prepare` runs it once, for a seed, into a folder that holds everything a worker needs:

    <root>/<name>@<digest>/
      task.json     TaskSpec, m_init and m_best on both halves, digests
      env/          the workspace an agent starts from (scripts); globs in `spec.read_only` are never the agent's
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
"""In private/ of a task that states the score of a reference instead of holding one: a number, or `relative_gain` over
the starting script."""


M_INIT = "m_init.json"
"""In private/ of a task whose starting script is to be filled in and cannot be run: what it counts as, a number."""


class TaskError(ValueError):
    """A task is unknown or its folder is broken; the message names what and the remedy."""


class NoHeadroomError(TaskError):
    """The reference does not beat the starting script on both halves of the hidden labels: nothing can be learnt."""


class InvalidSubmissionError(ValueError):
    """The submission cannot be graded; the message says why and holds nothing of the labels."""


class GraderLimitError(InvalidSubmissionError):
    """The submission alone makes its grader exceed a limit, which depends on the host too: this is never cached."""


class GraderError(TaskError):
    """A grader failed, and that is not known to be the submission's fault.

    The message says where and holds nothing that the grader said, which may tell of labels; `details` does, for the
    operator alone.
    """

    def __init__(
        self, message: str, details: str = "", *, kind: str = "", host: bool = False, limit: bool = False
    ) -> None:
        """Make it.

        Args:
          kind: the exception's type, or the limit.
          host: no submission can be the cause: the grader cannot be loaded, or a package is missing.
          limit: by a limit of time or memory, or the process was killed.
        """
        super().__init__(message)
        self.details, self.kind, self.host, self.limit = details, kind, host, limit


@dataclasses.dataclass(frozen=True)
class OwnIdea:
    """A candidate edit that a task brings along (those of the embedded tasks are in
    `environments.tasks.generated.ideas`)."""

    text: str
    """What to try, in a few words: what a prompt says."""
    cell: str
    """Name of a cell of the entry script."""
    code: str
    """New body of `cell`."""


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What is known of a task without its data."""

    name: str
    kind: str
    """tabular, image, text, time_series or graph."""
    split: str
    """`train` or `held_out`."""
    metric: str
    """Name in `environments.tasks.grading.metrics.METRICS`, which also knows the direction; else `direction` is set."""
    description: str
    """The research problem as the agent reads it in the full profile."""
    traits: str
    """One line of traits for compact prompts, for example `tabular classification, 300 rows, 12 columns, missing`."""
    source: str
    """Where the data is from, and what was done to it."""
    entry: str = "train.py"
    """The script that is run and scored."""
    submission: str = "submission.csv"
    read_only: tuple[str, ...] = ("helper.py",)
    limits: Limits = dataclasses.field(default_factory=Limits)
    direction: str = ""
    """For a metric of the task's own: `higher` or `lower` is better. Empty: as
    `environments.tasks.grading.metrics.METRICS` says."""

    gpus: int = 0
    """GPUs of the worker's host that an execution gets."""
    ideas: tuple[OwnIdea, ...] = ()
    """Offered beside those of the library, where these suit."""

    @property
    def higher_is_better(self) -> bool:
        return self.direction == "higher" if self.direction else metrics.get(self.metric).higher_is_better

    def to_dict(self) -> dict[str, Any]:
        record = dataclasses.asdict(self)
        for name in ("direction", "gpus", "ideas"):
            if not record[name]:
                del record[name]  # What is not set is in no digest.
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
        """Write env/, public/ and private/ under `directory` for `seed`, and the reference solution as
        private/reference.py. Deterministic in (recipe, seed). Returns `spec`, completed by what only the data tell: its
        traits."""


class PreparedTask(Protocol):
    """A prepared folder, as a worker and a report use it (implemented in `environments.tasks.prepared`)."""

    key: str
    """`name@digest`: digest over spec, data and environment."""
    spec: TaskSpec
    scale: Scale
    """On the reward half."""
    report_init: float
    """Score of the starting script on the report half."""
    env: Path
    public: Path

    def grade(self, submission: bytes) -> float:
        """Metric on the reward half.

        Raises:
          InvalidSubmissionError: not a readable table, wrong columns, missing, duplicate or unknown ids, NaN, inf...
          GraderError: the grader fails, and the submission is not the cause.
        """

    def grade_report(self, submission: bytes) -> float:
        """Metric on the report half; called only when a report is made."""

    def close(self) -> None:
        """End the grader's processes, if it has any."""
