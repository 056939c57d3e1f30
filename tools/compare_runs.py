"""Which tasks got better or worse from run A to run B, beyond the noise of their trajectories.

    python tools/compare_runs.py runs/board runs/other_board [--agent rl]

A line a task: relative gain in A and in B, the difference with its 95% interval (Welch's, over trajectories), and a
verdict where the interval leaves zero out. One task in twenty does so by chance: a difference that also stands after
Holm's correction for the number of tasks is marked `**`. The last line is over tasks, paired.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from scipy import stats

from mlagent_jax.reporting import records, statistics
from mlagent_jax.reporting.table import markdown
from mlagent_jax.runtime.jsonl import RecordError


def gains(workdir: str, agent: str) -> dict[str, list[float]]:
    """Relative gains of an agent's trajectories, by task."""
    policies = records.read_run(workdir).policies
    if agent not in policies:
        raise ValueError(f"{workdir} has no evaluation of {agent!r}; it has {', '.join(policies) or 'none'}")
    found: dict[str, list[float]] = {}
    for episode in policies[agent].episodes:
        gain = statistics.relative_gain(episode.score, episode.start, episode.higher_is_better)
        if gain is not None:
            found.setdefault(episode.task, []).append(gain)
    return found


def latest(*workdirs: str) -> str:
    """The last policy of training that all runs evaluated in episodes; `base` where there is none."""
    played = [{name for name, found in records.read_run(run).policies.items() if found.episodes} for run in workdirs]
    return next((name for name in ("rl", "sft") if all(name in names for names in played)), "base")


def welch(first: list[float], second: list[float]) -> tuple[float, float, float, float]:
    """Difference of means (second minus first), its 95% interval, and the p-value of no difference."""
    difference = float(np.mean(second) - np.mean(first))
    if min(len(first), len(second)) < 2:
        return difference, -np.inf, np.inf, 1.0
    if np.ptp(first) == np.ptp(second) == 0:  # No trajectory differs from another: neither has noise.
        return difference, difference, difference, float(difference == 0)
    test = stats.ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return difference, float(low), float(high), float(test.pvalue)


def compare(first: dict[str, list[float]], second: dict[str, list[float]]) -> list[list[str]]:
    """Rows of the table."""
    tasks = sorted(set(first) & set(second))
    if not tasks:
        raise ValueError("the runs have no task in common")
    tests = {task: welch(first[task], second[task]) for task in tasks}
    sure, ordered = set(), sorted(tasks, key=lambda task: tests[task][3])
    for rank, task in enumerate(ordered):
        if tests[task][3] > 0.05 / (len(tasks) - rank):
            break
        sure.add(task)
    rows = []
    for task in tasks:
        difference, low, high, _ = tests[task]
        verdict = "better" if low > 0 else "worse" if high < 0 else "-"
        mark = " **" if task in sure and verdict != "-" else ""
        rows.append(
            [
                task,
                *_percents(np.mean(first[task]), np.mean(second[task])),
                _interval(difference, low, high),
                verdict + mark,
            ]
        )
    means = [[float(np.mean(run[task])) for task in tasks] for run in (first, second)]
    overall = statistics.clustered_mean(np.subtract(means[1], means[0]).tolist(), tasks)
    low, high = overall.ci95 or (-np.inf, np.inf)
    verdict = "better" if low > 0 else "worse" if high < 0 else "-"
    rows.append(
        [f"all {len(tasks)} tasks", *_percents(*map(np.mean, means)), _interval(overall.mean, low, high), verdict]
    )
    return rows


def _percents(*values: float) -> list[str]:
    return [f"{100 * value:+.1f}%" for value in values]


def _interval(mean: float, low: float, high: float) -> str:
    known = np.isfinite(low) and np.isfinite(high)
    return _percents(mean)[0] + (f" [{', '.join(_percents(low, high))}]" if known else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", metavar="A", help="workdir of a run with evaluation/")
    parser.add_argument("second", metavar="B", help="workdir of another")
    parser.add_argument(
        "--agent", help="which agent of A, and of B (default: the last of base, sft and rl that both runs evaluated)"
    )
    parser.add_argument("--other-agent", help="which agent of B, where it is called otherwise")
    options = parser.parse_args()
    try:
        agent = options.agent or latest(options.first, options.second)
        other = options.other_agent or agent
        rows = compare(gains(options.first, agent), gains(options.second, other))
    except (FileNotFoundError, RecordError, ValueError) as error:
        sys.exit(f"compare_runs: {error}")
    print(f"A: {agent} of {options.first}\nB: {other} of {options.second}\n")
    print(markdown(["task", "A", "B", "B - A", "verdict"], rows))


if __name__ == "__main__":
    main()
