"""Results of a study's runs: figures by arm over seeds, and differences paired by seed and state.

policies, comparisons    as in a run's `summary.json`: `sft` (the initial policy of every arm), the arms, and `ARM: sft`
                         for an arm with its own start
diversity                by measure and split: mean and interval for each policy, and differences curves
by arm: relative gain over seconds of sampling, executing and updating cost                     by arm and seed:
iterations, executed actions, those seconds; entropy, KL and fraction of
                         silent groups at the end
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlagent_jax.reporting import diversity, records, statistics, summary
from mlagent_jax.runtime import jsonl, metrics
from mlagent_jax.studies.plan import Arm, Study, arm_run, start_run

START = "sft"
ENDS_WITH = {"entropy": "entropy, nats", "kl": "KL, nats", "silent_groups": "silent groups"}
"""Scalars of rl shown by a study, with their titles."""


def start_name(arm: Arm) -> str:
    """Return the name of an arm's initial policy."""
    return f"{arm.name}: sft" if arm.start else START


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluation file of a study."""

    seed: int
    policy: str
    path: Path


def evaluations(study: Study, root: Path, seeds: Sequence[int]) -> list[Evaluated]:
    """Return the existing evaluation files, each policy once per seed."""
    files: dict[tuple[int, str], Evaluated] = {}
    for seed in seeds:
        for arm in study.all_arms:
            for name, run, policy in (
                (start_name(arm), start_run(root, seed, arm, {}), "sft"),
                (arm.name, arm_run(root, seed, arm, {}), "rl"),
            ):
                path = run.workdir / "evaluation" / f"{policy}.jsonl"
                if path.exists():
                    files.setdefault((seed, name), Evaluated(seed, name, path))
    return list(files.values())


def pairs(study: Study) -> list[tuple[str, str]]:
    """Return the compared pairs: arms with the default one, RL with its initial policy, own starts with the shared
    one."""
    compared = [(arm.name, study.default.name) for arm in study.arms]
    compared += [(arm.name, start_name(arm)) for arm in study.all_arms]
    return compared + [(start_name(arm), START) for arm in study.arms if arm.start]


def results(study: Study, root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return all figures so far; `policies` is empty if no evaluation is done."""
    evaluated = evaluations(study, root, seeds)
    read = {
        seed: records.RunRecords(
            workdir=f"seed {seed}",
            info={},
            policies={e.policy: records.read_policy(e.path) for e in evaluated if e.seed == seed},
        )
        for seed in sorted({e.seed for e in evaluated})
    }
    whole = summary.figures(read.values(), pairs(study))
    return {
        "study": study.name,
        "question": study.question,
        "seeds": list(read),
        "arms": {arm.name: {"settings": plain(arm.settings), "start": plain(arm.start)} for arm in study.all_arms},
        **whole,
        "diversity": _diversity(evaluated, pairs(study)) if study.diversity else {},
        "by_seed": {f"{seed}": _by_seed(run) for seed, run in read.items()},
        "curves": {arm.name: _curve(arm, root, seeds) for arm in study.all_arms if arm.points},
        "cost": {
            arm.name: {f"{seed}": spent for seed in seeds if (spent := cost(arm_run(root, seed, arm, {}).workdir))}
            for arm in study.all_arms
        },
    }


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _by_seed(run: records.RunRecords) -> dict[str, Any]:
    """Return the means of one seed, for the dots next to the pooled means."""
    alone = summary.figures([run], ())["policies"]
    return {
        name: {
            field: {split: figure[key] for split, figure in policy.get(field, {}).items()}
            for field, key in (("step_reward", "mean"), ("relative_gain", "avg"))
        }
        for name, policy in alone.items()
    }


def _diversity(evaluated: Sequence[Evaluated], compared: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return {measure: {split: {"policies": .., "differences": ..}}}; means over states, or tasks, of all seeds."""
    figures: dict[str, Any] = {measure: {} for measure in diversity.MEASURES}
    for split in records.SPLITS:
        values: dict[str, dict[str, dict[tuple[Hashable, Hashable], float]]] = {}
        for one in evaluated:
            for measure, by_unit in diversity.measures(one.path, split).items():
                keyed = {(one.seed, unit): value for unit, value in by_unit.items()}
                values.setdefault(measure, {}).setdefault(one.policy, {}).update(keyed)
        for measure, policies in values.items():
            policies = {name: keyed for name, keyed in policies.items() if keyed}
            lists = {name: {key: [value] for key, value in keyed.items()} for name, keyed in policies.items()}
            differences = {
                f"{a}_minus_{b}": _fields(estimate)
                for a, b in compared
                if a in lists and b in lists and (estimate := statistics.paired_difference(lists[a], lists[b]))
            }
            means = {
                name: _fields(statistics.clustered_mean(list(keyed.values()), [unit for _, unit in keyed]))
                for name, keyed in policies.items()
            }
            if means:
                figures[measure][split] = {"policies": means, "differences": differences}
    return figures


def _fields(estimate: statistics.Estimate) -> dict[str, Any]:
    return {"mean": estimate.mean, "ci95": estimate.ci95 and list(estimate.ci95), "n": estimate.n}


def _curve(arm: Arm, root: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return relative gain at the arm's points, each with its machine time; means over the seeds that have all of
    them."""
    points: list[dict[str, Any]] = []
    for iteration in (0, *arm.points):
        runs, seconds = [], []
        for seed in seeds:
            run = arm_run(root, seed, arm, {})
            folder, last = run.workdir / "evaluation", iteration == arm.points[-1]
            path = folder / ("rl.jsonl" if last else f"rl@{iteration}.jsonl")
            if iteration == 0:
                path = start_run(root, seed, arm, {}).workdir / "evaluation" / "sft.jsonl"
            if not path.exists() or not run.is_done:
                continue
            runs.append(records.RunRecords(f"seed {seed}", {}, {arm.name: records.read_policy(path)}))
            seconds.append(machine_seconds(run.workdir, iteration))
        gains = summary.figures(runs, ())["policies"].get(arm.name, {}).get("relative_gain", {})
        if gains:
            points.append({"iteration": iteration, "seconds": sum(seconds) / len(seconds), "seeds": len(runs), **gains})
    return points


def machine_seconds(workdir: Path, iterations: int) -> float:
    """Return the seconds of the first iterations of rl, without evaluation and checkpoints."""
    rows = [row for row in metrics.read(workdir) if row["stage"] == "rl" and row["step"] <= iterations]
    return sum(row[f"seconds_{part}"] for row in rows for part in ("sample", "wait", "update"))


def cost(workdir: Path) -> dict[str, Any] | None:
    """Return the cost of a run's rl, and `ENDS_WITH` averaged over the last quarter of the iterations; None without any
    iteration."""
    rows = [row for row in metrics.read(workdir) if row["stage"] == "rl"]
    if not rows:
        return None
    actions = sum(1 for _ in jsonl.iterate(workdir / "trajectories" / "rl.jsonl"))
    last = rows[-max(1, len(rows) // 4) :]
    ends = {name: [row[name] for row in last if name in row] for name in ENDS_WITH}
    return {
        "iterations": len(rows),
        "actions": actions,
        "seconds": machine_seconds(workdir, len(rows)),
        **{name: sum(values) / len(values) for name, values in ends.items() if values},
    }
