"""Runs a task's script in a workspace and reads its submission, for steps, preparation and checks.

    workspace -> sandbox -> Execution
                    `-----> submission, read once from a hostile file

The run changes the workspace. `run_script` makes a fresh one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

from environments.files.hostile import HostileFileError, read_regular, remove
from environments.protocol import Limits
from environments.sandbox.base import Ending, Execution, Sandbox
from environments.seeds import execution_seed
from environments.tasks.task import TaskSpec

MAX_SUBMISSION_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Run:
    """Result of running a script, with its submission."""

    execution: Execution
    written: bool = False
    """Whether the entry script left something under the submission's name."""
    submission: bytes | None = None
    problem: str = ""
    """Why a successful entry script has no submission, for the agent."""

    @property
    def ended_well(self) -> bool:
        return self.execution.ending is Ending.EXITED and self.execution.exit_code == 0


def run_in(
    workspace: Path,
    script: str,
    spec: TaskSpec,
    sandbox: Sandbox,
    limits: Limits,
    *,
    data: Path,
    seed: int = 0,
    gpus: int = 0,
) -> Run:
    """Run the file `script` in `workspace`. An earlier submission is removed; only the entry script may submit.

    Args:
      workspace: folder to run in; the run changes it.
      script: path of the script in `workspace`.
      spec: spec of the task.
      sandbox: sandbox to run in.
      limits: limits of the execution.
      data: the task's public data.
      seed: seed of the execution.
      gpus: number of GPUs of the execution.

    Raises:
      SandboxError: the sandbox failed.
      HostileFileError: something in the workspace cannot be removed.
    """
    path = workspace / spec.submission
    remove(path)
    execution = sandbox.run(workspace, script, limits, data=data, seed=seed, gpus=gpus)
    if script != spec.entry:
        return Run(execution)
    run = Run(execution, written=os.path.lexists(path))
    if not run.ended_well:
        return run
    if not run.written:
        return dataclasses.replace(run, problem=f"the script ended without writing {spec.submission}.")
    try:
        return dataclasses.replace(run, submission=read_regular(path, MAX_SUBMISSION_BYTES))
    except HostileFileError as error:
        return dataclasses.replace(run, problem=f"invalid submission: {error}.")


def run_script(text: str, folder: Path, spec: TaskSpec, sandbox: Sandbox, run_seed: int = 0) -> Run:
    """Run `text` as the entry script of the prepared task in `folder`, in a fresh copy of its env/.

    Args:
      text: text of the script.
      folder: folder of the prepared task.
      spec: spec of the task.
      sandbox: sandbox to run in.
      run_seed: seed of a run or an episode; its executions get `execution_seed` of it.

    Raises:
      SandboxError: the sandbox failed.
    """
    with tempfile.TemporaryDirectory(prefix="mlagent-task-") as temporary:
        workspace = Path(temporary) / "workspace"
        shutil.copytree(folder / "env", workspace)
        (workspace / spec.entry).write_text(text, encoding="utf-8")
        data, seed = folder / "public", execution_seed(run_seed)
        return run_in(workspace, spec.entry, spec, sandbox, spec.limits, data=data, seed=seed, gpus=spec.gpus)
