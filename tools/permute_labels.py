"""A control: prepared tasks whose reward half has its labels permuted, so that no reward tells of the task.

    python tools/permute_labels.py --tasks runs/s0/tasks --output runs/permuted-tasks
    python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/permuted \\
        --config.tasks.folder=runs/permuted-tasks

Keys stay, so that a run takes these folders for the tasks that it prepares. The report half keeps its labels: gains of
episodes, which are graded there, are honest, and training against the permuted half must not raise them. Scales of the
reward half are those of chance: the starting script's score there, and the true gap above it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from environments.protocol import Scale
from environments.sandbox import open_sandbox
from environments.sandbox.base import Sandbox
from environments.tasks import FolderTask
from environments.tasks.grading.submissions import Answers
from environments.tasks.prepared import open_task
from environments.tasks.running import run_script


def permute(task: FolderTask, output: Path, seed: int, sandbox: Sandbox) -> FolderTask:
    """A copy of `task` under `output`, the labels of its reward half permuted.

    Raises:
      ValueError: the task grades with code of its own, or its starting script leaves nothing to grade.
    """
    answers = task.grader
    if not isinstance(answers, Answers):
        raise ValueError(f"task {task.spec.name} grades with code of its own: only embedded tasks can be permuted")
    folder = output / task.key
    shutil.copytree(task.folder, folder)
    rows = np.flatnonzero(~answers.report)
    truth = answers.truth.copy()
    truth[rows] = truth[np.random.default_rng(seed).permutation(rows)]
    permuted = dataclasses.replace(answers, truth=truth)
    permuted.save(folder / "private" / "answers.npz")
    submission = run_script(task.script, folder, task.spec, sandbox).submission
    if submission is None:
        raise ValueError(f"task {task.spec.name}: its starting script left no submission")
    start = permuted.grade(submission, "reward")
    gain = task.scale.m_best - task.scale.m_init
    scale = Scale(start, start + gain, task.scale.higher_is_better, task.scale.noise)
    record = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    record["scale"] = scale.to_dict()
    (folder / "task.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return open_task(output, task.key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=Path, required=True, help="folder of prepared tasks, `tasks` in a workdir")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the permutation")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"--output: {arguments.output} exists; name a new folder")
    keys = sorted(path.parent.name for path in arguments.tasks.glob("*@*/task.json"))
    if not keys:
        parser.error(f"--tasks: {arguments.tasks} holds no prepared task")
    arguments.output.mkdir(parents=True)
    sandbox = open_sandbox("auto")
    for key in keys:
        task = permute(open_task(arguments.tasks, key), arguments.output, arguments.seed, sandbox)
        print(f"{key}: m_init {task.scale.m_init:.4g}, true labels {task.report_init:.4g} on the report half")
    sandbox.close()


if __name__ == "__main__":
    main()
