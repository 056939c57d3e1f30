"""A task and a sandbox small enough to read, for tests of what stands between them."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

from environments.actions import Action
from environments.files.blobs import open_store
from environments.protocol import Job, Limits, Scale
from environments.sandbox.base import Ending, Execution
from environments.step import Environment
from environments.tasks.task import InvalidSubmissionError, TaskSpec

TRAIN = """\
import helper

# %% model
guess = 1.0

# %% submit
helper.submit(guess)
"""
HELPER = """\
def submit(guess):
    with open("submission.csv", "w") as file:
        file.write(f"{guess}")
    print("loss on the training data", abs(guess - float(open("data/train.csv").read())))
"""
LABEL = 3.25
"""The hidden label: the metric is the distance from it."""


SCALE = Scale(m_init=LABEL - 1.0, m_best=0.0, higher_is_better=False)


@dataclasses.dataclass
class FakeTask:
    """Guess a number. Starts at 1.0, the best is 3.25, and lower is better."""

    key: str
    env: Path
    public: Path
    spec: TaskSpec
    scale: Scale = SCALE
    report_init: float = 0.0

    def grade(self, submission: bytes) -> float:
        try:
            return abs(float(submission) - LABEL)
        except ValueError as error:
            raise InvalidSubmissionError("no number") from error

    def grade_report(self, submission: bytes) -> float:
        return self.grade(submission)

    def close(self) -> None:
        pass


def fake_task(folder: Path) -> FakeTask:
    env, public = folder / "env", folder / "public"
    env.mkdir(parents=True)
    public.mkdir()
    (env / "train.py").write_text(TRAIN)
    (env / "helper.py").write_text(HELPER)
    (public / "train.csv").write_text("3.0")
    spec = TaskSpec(
        name="guess",
        kind="tabular",
        split="train",
        metric="mae",
        description="Guess the number.",
        traits="one number",
        source="made up",
    )
    return FakeTask("guess@0", env, public, spec)


class FakeSandbox:
    """Runs a script as a plain subprocess: for scripts of this suite alone. `failures` are raised first."""

    name = "fake"
    environment_digest = "0"
    guarantees: frozenset[str] = frozenset()
    gpus = 0

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.failures: list[Exception] = []
        self.endings: list[Execution] = []

    def run(
        self, workspace: Path, script: str, limits: Limits, data: Path | None = None, seed: int = 0, gpus: int = 0
    ) -> Execution:
        self.runs.append(script)
        if self.failures:
            raise self.failures.pop(0)
        if self.endings:
            return self.endings.pop(0)
        if data is not None:
            shutil.copytree(data, workspace / "data")
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-S", "-B", script],
            cwd=workspace,
            capture_output=True,
            text=True,
            timeout=limits.wall_seconds,
            env={"MLAGENT_SEED": str(seed), "PATH": ""},
        )
        seconds = time.monotonic() - start
        return Execution(Ending.EXITED, done.returncode, done.stdout, done.stderr, seconds, seconds)

    def close(self) -> None:
        pass


class Player:
    """Takes steps one after the other in one environment."""

    def __init__(self, environment: Environment, task: str, limits: Limits, cell: str) -> None:
        self.environment, self.task, self.limits, self.cell = environment, task, limits, cell
        self.restart()

    def restart(self) -> None:
        self.state = self.environment.initial_state(self.task)

    def play(self, name, block=None, profile="compact", labels="", **arguments):
        action = labels + Action(name, arguments, block).render()
        job = Job("abuse", 0, self.state, 0, action, profile=profile, limits=self.limits)
        outcome = self.environment.take(job)
        self.state = outcome.next_state(job)
        assert str(self.environment._workspaces.scratch) not in outcome.observation
        return outcome

    def edit(self, code, cell=None, **options):
        """Replace a cell of the entry script, by default the one that decides the score."""
        arguments = {"script_name": "train.py", "cell": cell or self.cell}
        return self.play("Edit Script (Cell)", code, **arguments, **options)


@contextlib.contextmanager
def playing(sandbox, folder, limits=None):
    """A `Player` in the task of `fake_task`; in the end no folder of a step is left."""
    folder.mkdir(exist_ok=True)
    task = fake_task(folder / "task")
    scratch = folder / "scratch"
    scratch.mkdir()
    environment = Environment(folder / "tasks", sandbox, open_store(folder / "store"), scratch=scratch)
    environment._opened[task.key] = task
    try:
        yield Player(environment, task.key, limits or Limits(), "model")
    finally:
        environment.close()
    assert list(scratch.iterdir()) == []
