"""What a reward pays to policies that do nothing useful, beside honest attempts that fail to gain.

    python tools/degenerate_policies.py                                  three tasks, our reward and the paper's two
    python tools/degenerate_policies.py wine signs --reward frugal noise

Every policy takes real steps in a sandbox, from the start of each task. The honest attempts are ideas of the task, one
edit each from the start. The outcomes are rewarded by every reward asked for, so more rewards cost no executions.
A reward that pays a degenerate policy more than an honest attempt that fails to gain teaches that policy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from environments import tasks
from environments.actions import Action
from environments.files.blobs import open_store
from environments.protocol import Job, Outcome, OutcomeKind, State
from environments.registry import RegistryError
from environments.rewards import REWARDS, changes_the_score, compute
from environments.sandbox import open_sandbox
from environments.seeds import execution_seed
from environments.step import Environment
from environments.tasks import FolderTask
from environments.tasks.generated.ideas import ideas_for

TASKS = ("iris", "wine", "diabetes")
REWARD = ("improvement", "paper_v1", "paper_v2")
HONEST = "an honest attempt that fails to gain"
GAINED = "an honest attempt that gains"
_SECONDS = 2.0
"""CPU limit of the policy that waits for the limit."""

Policy = Callable[[int], Action]
"""The action of a step, from its number."""


def _append(text: str) -> Action:
    return Action("Append File", {"file_name": "train.py", "content": f"\n{text}\n"})


def _waits(step: int) -> Action:
    return _append(f"while True: pass  # {step}")


DEGENERATE: Mapping[str, Policy] = {
    "always comments": lambda step: _append(f"# remark {step}"),
    "always adds a line that nothing reads": lambda step: _append(f"unused_{step} = {step}"),
    "always writes a file that nothing reads": lambda step: Action(
        "Write File", {"file_name": f"notes_{step}.txt", "content": "nothing"}
    ),
    "always looks": lambda step: Action("List Files", {"dir_path": "."}),
    "always runs again": lambda step: Action("Execute Script", {"script_name": "train.py"}),
    "always waits for the time limit": _waits,
}
"""Policies by name; `play` adds one that repeats an edit."""


def play(environment: Environment, task: FolderTask, ideas: int, steps: int) -> Iterator[tuple[str, Outcome]]:
    """Steps by the name of the policy that took them: of each degenerate one, and honest attempts.

    Args:
      ideas: honest attempts, drawn from the ideas of the task.
      steps: of each degenerate policy.
    """
    start = environment.initial_state(task.key)
    failed: Action | None = None
    known = ideas_for(task.spec, task.script)
    for idea in random.Random(0).sample(known, min(ideas, len(known))):
        action = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": idea.cell}, idea.code)
        outcome = _take(environment, task, start, action)[0]
        if outcome.kind is not OutcomeKind.SCORED:
            continue
        gained = outcome.delta > 0 and changes_the_score(outcome)
        failed = failed if gained or failed else action
        yield GAINED if gained else HONEST, outcome
    policies = dict(DEGENERATE)
    if failed is not None:
        policies["always the same edit"] = lambda step: failed
    for name, policy in policies.items():
        state = start
        for step in range(steps):
            seconds = _SECONDS if policy is _waits else task.spec.limits.cpu_seconds
            outcome, state = _take(environment, task, state, policy(step), seconds)
            yield name, outcome


def _take(
    environment: Environment, task: FolderTask, state: State, action: Action, seconds: float | None = None
) -> tuple[Outcome, State]:
    limits = task.spec.limits if seconds is None else dataclasses.replace(task.spec.limits, cpu_seconds=seconds)
    job = Job("degenerate", 0, state, 0, action.render(), limits=limits, seed=execution_seed(0))
    outcome = environment.take(job)
    return outcome, outcome.next_state(job)


def means(found: Sequence[tuple[str, Outcome]], reward: str) -> dict[str, float]:
    """Mean step reward by policy."""
    paid: dict[str, list[float]] = {}
    for name, outcome in found:
        value = compute(reward, outcome)
        if value is not None:
            paid.setdefault(name, []).append(value)
    return {name: statistics.mean(values) for name, values in paid.items()}


def table(found: Sequence[tuple[str, Outcome]], chosen: Sequence[str]) -> str:
    """Markdown: a line a policy, a column a reward, and what is wrong with them."""
    by_reward = {reward: means(found, reward) for reward in chosen}
    counts = {name: sum(other == name for other, _ in found) for name, _ in found}
    lines = ["| policy | steps | " + " | ".join(chosen) + " |", "|---|---:|" + "---:|" * len(chosen)]
    for name, count in counts.items():
        lines.append(f"| {name} | {count} | " + " | ".join(f"{by_reward[r][name]:.3f}" for r in chosen) + " |")
    for reward, paid in by_reward.items():
        over = [name for name in paid if name not in (HONEST, GAINED) and paid[name] > paid.get(HONEST, 0.0) + 1e-9]
        lines.append(f"\n{reward}: {'; '.join(over) or 'none'} earns more than {HONEST}.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=TASKS, help=f"names (default: {' '.join(TASKS)})")
    parser.add_argument("--reward", nargs="+", default=REWARD, help="rewards, parameters behind a colon")
    parser.add_argument("--ideas", type=int, default=16, help="honest attempts a task (default %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a degenerate policy (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--sandbox", default="bubblewrap")
    options = parser.parse_args(arguments)
    try:
        for reward in options.reward:
            REWARDS.choose(reward)
    except RegistryError as error:
        sys.exit(f"error: {error}")
    found: list[tuple[str, Outcome]] = []
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlagent-tasks-")))
        sandbox = stack.enter_context(contextlib.closing(open_sandbox(options.sandbox)))
        environment = Environment(root, sandbox, open_store(root / "store"))
        stack.callback(environment.close)
        for name in options.tasks:
            task = tasks.prepare(name, root, options.seed, sandbox)
            found += play(environment, task, options.ideas, options.steps)
    print(table(found, options.reward))


if __name__ == "__main__":
    main()
