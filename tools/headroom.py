"""Headroom of tasks: try every idea from a state, in a sandbox, and tabulate what helps, what hurts and by how much.

    python tools/headroom.py digits diabetes            embedded tasks by name
    python tools/headroom.py --micro 24 --deeper 1      24 micro-tasks a split, and from 1 state an edit deeper
    python tools/headroom.py --json states.jsonl        every edit as a JSON line as well: tune a learner offline on it
    python tools/headroom.py --stability                no ideas: how sure the metric of each task is, against its gap

A state is worth training on when some of the ideas help and rewards vary within it. The table is a snapshot of the
tasks, for people; environments/tasks/HEADROOM.md holds the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from environments import rewards, tasks
from environments.actions.edits import replace_cell
from environments.protocol import Outcome, OutcomeKind
from environments.sandbox import open_sandbox
from environments.sandbox.base import Ending, Sandbox
from environments.tasks import FolderTask, InvalidSubmissionError
from environments.tasks.generated import micro
from environments.tasks.generated.ideas import Idea, ideas_for
from environments.tasks.grading.submissions import Answers, read_submission
from environments.tasks.running import run_script


@dataclasses.dataclass(frozen=True)
class Trial:
    """One idea tried in one state."""

    state: str
    """Task name, and the text of the idea that led to the state, if any."""
    task: str
    split: str
    traits: str
    script: str
    idea: str
    cell: str
    code: str
    kind: str
    gain: float
    """Share of the gap that it closed; 0 where it was not scored."""
    reward: float
    cpu_seconds: float
    metric: float | None
    observation: str


def execute(task: FolderTask, script: str, sandbox: Sandbox) -> tuple[OutcomeKind, float | None, float, str]:
    """Run `script` as the task's entry: how it ended, its metric, CPU seconds, and what it printed."""
    done = run_script(script, task.folder, task.spec, sandbox)
    run = done.execution
    limit = {Ending.TIME_LIMIT: OutcomeKind.TIME_LIMIT, Ending.MEMORY_LIMIT: OutcomeKind.MEMORY_LIMIT}
    if run.ending is not Ending.EXITED or run.exit_code != 0:
        return limit.get(run.ending, OutcomeKind.SCRIPT_ERROR), None, run.cpu_seconds, run.stderr[-300:]
    try:
        return OutcomeKind.SCORED, task.grade(done.submission or b""), run.cpu_seconds, run.stdout.strip()
    except InvalidSubmissionError as error:
        return OutcomeKind.SCRIPT_ERROR, None, run.cpu_seconds, str(error)


def trials(task: FolderTask, ideas: int, deeper: int, sandbox: Sandbox) -> Iterator[Trial]:
    """`ideas` ideas (0: all) from the start, then from `deeper` states that lie one helpful edit further."""
    first = list(_from_state(task, task.spec.name, task.script, task.scale.m_init, ideas, sandbox))
    yield from first
    helpful = [trial for trial in first if trial.reward > 0.55]
    for trial in random.Random(0).sample(helpful, min(deeper, len(helpful))):
        script = replace_cell(task.script, trial.cell, trial.code)
        yield from _from_state(task, f"{task.spec.name} + {trial.idea}", script, trial.metric, ideas, sandbox)


def _from_state(
    task: FolderTask, state: str, script: str, before: float, ideas: int, sandbox: Sandbox
) -> Iterator[Trial]:
    known = ideas_for(task.spec, script)
    count = min(ideas or len(known), len(known))
    for idea in random.Random(state).sample(known, count):
        yield _try(task, state, script, before, idea, sandbox)


def _try(task: FolderTask, state: str, script: str, before: float, idea: Idea, sandbox: Sandbox) -> Trial:
    kind, metric, seconds, printed = execute(task, replace_cell(script, idea.cell, idea.code), sandbox)
    outcome = Outcome(kind, printed, "", "", before, metric, task.scale)
    return Trial(
        state=state,
        task=task.spec.name,
        split=task.spec.split,
        traits=task.spec.traits,
        script=script,
        idea=idea.text,
        cell=idea.cell,
        code=idea.code,
        kind=kind.value,
        gain=0.0 if metric is None else rewards.relative_delta(outcome),
        reward=rewards.compute("improvement", outcome),
        cpu_seconds=seconds,
        metric=metric,
        observation=printed,
    )


@dataclasses.dataclass(frozen=True)
class Stability:
    """How sure the metric of a task is."""

    standard_error: float
    """Of the reference's metric on the reward half, by bootstrap over its rows."""
    cpu_seconds: float
    """Of the starting script."""


def stability(task: FolderTask, sandbox: Sandbox, draws: int = 200) -> Stability:
    """Measure a task whose labels are `grading.Answers`: an embedded one, or a micro-task."""
    start = run_script(task.script, task.folder, task.spec, sandbox).execution
    reference = (task.folder / "private" / "reference.py").read_text(encoding="utf-8")
    submission = run_script(reference, task.folder, task.spec, sandbox).submission
    answers = Answers.load(task.folder / "private" / "answers.npz")
    form, columns = answers.metric.form, answers.columns
    prediction = read_submission(submission or b"", form, columns, len(answers.truth), answers.classes)
    half = np.flatnonzero(~answers.report)
    rng = np.random.default_rng(0)
    samples = (rng.choice(half, len(half)) for _ in range(draws))
    error = float(np.std([answers.metric(answers.truth[rows], prediction[rows]) for rows in samples]))
    return Stability(error, start.cpu_seconds)


def stability_line(task: FolderTask, found: Stability) -> str:
    """A line of the table that `--stability` prints."""
    scale, spec = task.scale, task.spec
    figures = f"{scale.m_init:.4g} | {scale.m_best:.4g} | {found.standard_error / scale.gap:.3f}"
    return f"| {spec.split} | {spec.name} | {spec.metric} | {figures} | {found.cpu_seconds:.2f} |"


def table(rows: Sequence[Trial]) -> str:
    """Markdown: a line a state, then the ideas by how they fare over all states."""
    states, ideas = defaultdict(list), defaultdict(list)
    for row in rows:
        states[row.split, row.state].append(row)
        ideas[row.idea].append(row)
    head = "| split | state | ideas | help | hurt | errors | mean | SD | best | seconds | best ideas |"
    lines = [head, "|---|---|" + "---:|" * 8 + "---|"]
    lines += [_line(split, state, tried) for (split, state), tried in states.items()]
    for split in tasks.SPLITS:
        of_split = [tried for (other, _), tried in states.items() if other == split]
        if of_split:
            lines.append(_mean_line(split, of_split))
    lines += ["", "| idea | states | helps | mean reward |", "|---|---:|---:|---:|"]
    ranked = sorted(ideas.items(), key=lambda item: -statistics.mean(row.reward for row in item[1]))
    for text, tried in ranked:
        share, _, _ = _shares(tried)
        lines.append(f"| {text} | {len(tried)} | {share:.0%} | {statistics.mean(row.reward for row in tried):.2f} |")
    return "\n".join(lines) + "\n"


def _shares(tried: Sequence[Trial]) -> tuple[float, float, float]:
    """Shares that help, hurt, and fail; a change of less than a hundredth of the gap is neither help nor hurt."""
    helped = sum(row.gain > 0.01 for row in tried)
    hurt = sum(row.gain < -0.01 for row in tried)
    failed = sum(row.kind != OutcomeKind.SCORED for row in tried)
    return helped / len(tried), hurt / len(tried), failed / len(tried)


def _line(split: str, state: str, tried: Sequence[Trial]) -> str:
    got = [row.reward for row in tried]
    best = sorted(tried, key=lambda row: -row.reward)[:3]
    shares = " | ".join(f"{share:.0%}" for share in _shares(tried))
    seconds = statistics.median(row.cpu_seconds for row in tried)
    return (
        f"| {split} | {state} | {len(tried)} | {shares} | {statistics.mean(got):.2f} | {statistics.pstdev(got):.2f} | "
        f"{max(got):.2f} | {seconds:.2f} | {'; '.join(row.idea for row in best)} |"
    )


def _mean_line(split: str, states: Sequence[Sequence[Trial]]) -> str:
    shares = " | ".join(f"{statistics.mean(column):.0%}" for column in zip(*map(_shares, states), strict=True))
    means, spreads, bests = (
        statistics.mean(function([row.reward for row in tried]) for tried in states)
        for function in (statistics.mean, statistics.pstdev, max)
    )
    seconds = statistics.median(row.cpu_seconds for tried in states for row in tried)
    count = statistics.mean(len(tried) for tried in states)
    return (
        f"| **{split}** | **all {len(states)} states** | {count:.0f} | {shares} | {means:.2f} | {spreads:.2f} | "
        f"{bests:.2f} | {seconds:.2f} | |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help="names; all embedded tasks where neither names nor --micro are given")
    parser.add_argument("--micro", type=int, default=0, help="micro-tasks of each split besides")
    parser.add_argument("--ideas", type=int, default=0, help="so many of each state's ideas, at random; 0: all")
    parser.add_argument("--deeper", type=int, default=0, help="states one helpful edit deeper, of every task")
    parser.add_argument(
        "--stability", action="store_true", help="try no ideas; tabulate standard errors of the metrics"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--sandbox", default="bubblewrap")
    parser.add_argument("--json", type=Path, help="write every trial as a JSON line to this file")
    options = parser.parse_args(arguments)
    names = options.tasks or (() if options.micro else tasks.names())
    names = [*names, *(name for split in tasks.SPLITS for name in micro.names(split, options.micro, 0))]
    rows: list[Trial] = []
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(contextlib.closing(open_sandbox(options.sandbox)))
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlagent-tasks-")))
        if options.stability:
            print("| split | task | metric | m_init | m_best | standard error / gap | start, CPU s |")
            print("|---|---|---|---:|---:|---:|---:|")
            for name in names:
                task = tasks.prepare(name, root, options.seed, sandbox)
                print(stability_line(task, stability(task, sandbox)), flush=True)
            return
        out = stack.enter_context(options.json.open("w", encoding="utf-8")) if options.json else None
        for name in names:
            print(name, file=sys.stderr, flush=True)
            for row in trials(tasks.prepare(name, root, options.seed, sandbox), options.ideas, options.deeper, sandbox):
                rows.append(row)
                if out:
                    out.write(json.dumps(dataclasses.asdict(row)) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
