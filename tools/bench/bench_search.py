"""Strategies of search at equal executions, for the scripted expert: gain on the half of the labels that no search saw.

    python tools/bench/bench_search.py --tasks=iris,credit-risk,signs --executions=100 --seeds=3 --output=DIR

Each search is kept in --output and goes on where it stopped. A gain is that of the best script so far by the first
half, in units of the task's gap (reference minus start). Intervals: 95% bootstrap, stratified by task, which are too
narrow for few seeds; differences are paired by task and seed. An execution that the cache knew counts as one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from environments import make
from environments.episode import Episode
from mlagent_jax.agents.factory import ScriptedAgent
from mlagent_jax.agents.scripted import ScriptedExpert
from mlagent_jax.reporting.statistics import stratified_interval
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.executors import LocalSlots
from mlagent_jax.search.run import Search, Settings
from mlagent_jax.search.store import TreeStore
from mlagent_jax.search.strategies import STRATEGIES
from mlagent_jax.search.tree import Tree
from mlagent_jax.settings.stages import CollectConfig

BASELINE = "episodes"
COUNTS = (5, 10, 25, 50, 100, 200, 400)


def searched(episode: Episode, strategy: str, executions: int, seed: int, folder: Path) -> Tree:
    """Return the tree of one search with that many executions."""
    script = episode.state.script
    agent = ScriptedAgent(lambda t: ScriptedExpert(episode.spec, script, CollectConfig(), "compact", t.seed))
    settings = Settings(STRATEGIES.choose(strategy), Budget(executions=executions), seed)
    facts = {"task": episode.task_key, "strategy": strategy, "seed": seed}
    with (
        TreeStore(folder, facts, episode.state, episode.scale) as store,
        contextlib.closing(LocalSlots(episode.take, 1)) as slots,
    ):
        Search(store, settings, agent, lambda state, action: episode.job(state, action.text), slots).run()
        return store.refresh()


def gains(episode: Episode, tree: Tree, counts: list[int]) -> Iterator[float]:
    """Yield the gain on the second half of the best script after each number of executions."""
    scale, start = episode.scale, episode.report_score(None)
    best, executed, ahead = tree.root, 0, list(counts)
    for node in [*tree.finished(), None]:
        while ahead and (node is None or (node.result.executed and executed == ahead[0])):
            submission = best.result and best.result.outcome.submission
            yield scale.delta(start, episode.report_score(submission)) / scale.gap if submission else 0.0
            ahead.pop(0)
        if node is not None:
            executed += node.result.executed
            if node.metric is not None and tree.gain(node) > tree.gain(best):
                best = node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="iris,credit-risk,signs")
    parser.add_argument("--strategies", default="episodes,best_of_n,greedy,mcts,evolution")
    parser.add_argument("--executions", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_search"))
    options = parser.parse_args()
    counts = [count for count in COUNTS if count < options.executions] + [options.executions]
    strategies = options.strategies.split(",")
    measured: dict[str, dict[str, list[list[float]]]] = {name: {} for name in strategies}
    for task in options.tasks.split(","):
        started = time.monotonic()
        with make(task, sandbox=options.sandbox, cache_dir=options.output / "cache") as episode:
            for strategy, seed in itertools.product(strategies, range(options.seeds)):
                folder = options.output / task / strategy.replace(":", "-") / str(seed)
                tree = searched(episode, strategy, options.executions, seed, folder)
                measured[strategy].setdefault(task, []).append(list(gains(episode, tree, counts)))
        print(f"{task}: {time.monotonic() - started:.0f} s", flush=True)
    print(
        f"\n| strategy | {' | '.join(f'{count} executions' for count in counts)} | less {BASELINE}'s at {counts[-1]} |"
    )
    print(f"|---|{'---|' * (len(counts) + 1)}")
    for strategy in strategies:
        rows = measured[strategy]
        cells = [_cell([[seed[place] for seed in seeds] for seeds in rows.values()]) for place in range(len(counts))]
        paired = ""
        if BASELINE in measured and strategy != BASELINE:
            pairs = ((rows[task], measured[BASELINE][task]) for task in rows)
            paired = _cell([[a[-1] - b[-1] for a, b in zip(*pair, strict=True)] for pair in pairs])
        print(f"| {strategy} | {' | '.join(cells)} | {paired} |")


def _cell(groups: list[list[float]]) -> str:
    """Return the mean of the tasks' means, with its interval."""
    mean = sum(sum(group) / len(group) for group in groups) / len(groups)
    interval = stratified_interval(groups)
    return f"{mean:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")


if __name__ == "__main__":
    main()
