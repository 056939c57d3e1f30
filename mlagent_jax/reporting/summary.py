"""`report/summary.json`: the figures of a run, or of several that differ in their seed, from the evaluation records.

    policies.<policy>           valid_action_rate
                                step_reward.<split>     mean, ci95, n, states
                                relative_gain.<split>   avg, best, best_of, ci95 (of avg), n (episodes), tasks
                                infrastructure_errors   steps, episodes excluded because of them
                                tasks.<name>            the same for one task
    comparisons.<a>_minus_<b>   step_reward.<split>     mean, ci95, n (states); paired by state
                                relative_gain.<split>   the same fields; paired by task
    policies.<policy>.unplayed  sentences, each with a count: what was planned and could not be asked or played
    run                         ended (kind, reason, status, time), seconds by stage, executions, peak_memory_gb, seed,
                                sandbox, versions

Results that were not evaluated are absent. `ci95` is null with a single state or task. An infrastructure error says
nothing about the policy: such an action is excluded everywhere, and so is an episode with one, because it lost a step.
`valid_action_rate` is over all sampled actions, including those of episodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from environments.protocol import OutcomeKind
from mlagent_jax.evaluation import unplayed
from mlagent_jax.reporting import records, statistics

COMPARISONS = (("rl", "sft"), ("sft", "base"), ("rl", "base"))
REWARD_BOUNDS = {"improvement": (0.0, 1.0), "staged": (0.0, 1.0), "paper_v1": (0.0, 1.0), "paper_v2": (-1.0, 1.0)}
"""Lowest and highest value of each reward that comes along."""
RUN_FIELDS = ("ended", "seconds", "executions", "peak_memory_gb", "seed", "sandbox", "versions")

_Runs = Sequence[tuple[Hashable, records.PolicyRecords]]
"""One policy's records by run."""


def _ran(action: records.Action) -> bool:
    return action.kind is not OutcomeKind.INFRASTRUCTURE_ERROR


def _select(runs: _Runs, keep: Callable[[Any], bool]) -> _Runs:
    """Return `runs` with only the steps and episodes for which `keep` holds."""
    parts = [(run, (policy.steps, policy.episodes, policy.unplayed)) for run, policy in runs]
    return [(run, records.PolicyRecords(*(tuple(filter(keep, part)) for part in each))) for run, each in parts]


def _rewards(runs: _Runs) -> dict[tuple[Hashable, Hashable], list[float]]:
    """Return step rewards by (run, state)."""
    rewards: dict[tuple[Hashable, Hashable], list[float]] = {}
    for run, policy in runs:
        for step in policy.steps:
            if _ran(step.action):
                rewards.setdefault((run, (step.task, step.state)), []).append(step.action.reward)
    return rewards


def _gains(runs: _Runs) -> tuple[list[statistics.Episode], int]:
    """Return episodes with a relative gain, and the number of episodes without one (baseline zero)."""
    whole = [(run, e) for run, policy in runs for e in policy.episodes if all(map(_ran, e.actions))]
    gains = [(run, e, statistics.relative_gain(e.score, e.start, e.higher_is_better)) for run, e in whole]
    defined = [statistics.Episode(task=e.task, run=run, gain=gain) for run, e, gain in gains if gain is not None]
    return defined, len(gains) - len(defined)


def _ci(estimate: statistics.Estimate) -> list[float] | None:
    return None if estimate.ci95 is None else list(estimate.ci95)


def _step_reward(runs: _Runs) -> dict[str, Any] | None:
    rewards = _rewards(runs)
    if not rewards:
        return None
    values = [value for group in rewards.values() for value in group]
    states = [state for (_, state), group in rewards.items() for _ in group]
    estimate = statistics.clustered_mean(values, states)
    return {"mean": estimate.mean, "ci95": _ci(estimate), "n": estimate.n, "states": estimate.clusters}


def _best_of(runs: _Runs) -> int:
    """Return the k of best@k that every run supports."""
    return min(episode.best_of for _, policy in runs for episode in policy.episodes)


def _gain_fields(gain: statistics.Gain, k: int, tasks: int) -> dict[str, Any]:
    interval = _ci(gain.avg)
    return {"avg": gain.avg.mean, "best": gain.best, "best_of": k, "ci95": interval, "n": gain.avg.n, "tasks": tasks}


def _relative_gain(runs: _Runs) -> dict[str, Any] | None:
    episodes, undefined = _gains(runs)
    if not episodes:
        return None
    k = _best_of(runs)
    fields = _gain_fields(statistics.gain(episodes, k), k, len({episode.task for episode in episodes}))
    return {**fields, "undefined": undefined} if undefined else fields


def _by_split(figure: Callable[[_Runs], dict[str, Any] | None], runs: _Runs) -> dict[str, Any]:
    """Return `figure` of each split that has one."""
    figures = {
        split: figure(_select(runs, lambda record, split=split: record.split == split)) for split in records.SPLITS
    }
    return {split: fields for split, fields in figures.items() if fields is not None}


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in ({}, None)}


def _policy(runs: _Runs) -> dict[str, Any]:
    steps = [step.action for _, policy in runs for step in policy.steps]
    episodes = [episode.actions for _, policy in runs for episode in policy.episodes]
    ran = [action for action in (*steps, *(action for actions in episodes for action in actions)) if _ran(action)]
    return _present(
        {
            "valid_action_rate": sum(action.valid for action in ran) / len(ran) if ran else None,
            "step_reward": _by_split(_step_reward, runs),
            "relative_gain": _by_split(_relative_gain, runs),
            "infrastructure_errors": {
                "steps": sum(not _ran(action) for action in steps),
                "episodes": sum(not all(map(_ran, actions)) for actions in episodes),
            },
            "unplayed": unplayed.told(each for _, policy in runs for each in policy.unplayed) or None,
        }
    )


def _tasks(runs: _Runs) -> list[str]:
    return sorted({record.task for _, policy in runs for record in (*policy.steps, *policy.episodes)})


def _policy_with_tasks(runs: _Runs) -> dict[str, Any]:
    tasks = {name: _policy(_select(runs, lambda record, name=name: record.task == name)) for name in _tasks(runs)}
    return {**_policy(runs), "tasks": tasks}


def _comparison(first: _Runs, second: _Runs) -> dict[str, Any]:
    def step_reward(split: str) -> dict[str, Any] | None:
        pair = [_rewards(_select(runs, lambda record: record.split == split)) for runs in (first, second)]
        estimate = statistics.paired_difference(*pair)
        return estimate and {"mean": estimate.mean, "ci95": _ci(estimate), "n": estimate.clusters}

    def relative_gain(split: str) -> dict[str, Any] | None:
        pair = [_select(runs, lambda record: record.split == split) for runs in (first, second)]
        gains = [_gains(runs)[0] for runs in pair]
        if not all(gains):
            return None
        k = min(map(_best_of, pair))
        gain = statistics.gain_difference(*gains, k)
        return gain and _gain_fields(gain, k, gain.avg.clusters)

    return _present(
        {
            "step_reward": _present({split: step_reward(split) for split in records.SPLITS}),
            "relative_gain": _present({split: relative_gain(split) for split in records.SPLITS}),
        }
    )


def figures(runs: Iterable[records.RunRecords], pairs: Sequence[tuple[str, str]] = COMPARISONS) -> dict[str, Any]:
    """Return `policies` and `comparisons` of one run, or of several pooled.

    Args:
      runs: Runs with distinct `workdir`.
      pairs: Names of policies; the first of a pair is compared with the second.
    """
    runs = list(runs)
    names = dict.fromkeys([*records.POLICIES, *(name for run in runs for name in run.policies)])
    by_policy = {name: [(run.workdir, run.policies[name]) for run in runs if name in run.policies] for name in names}
    comparisons = {f"{a}_minus_{b}": _comparison(by_policy.get(a, []), by_policy.get(b, [])) for a, b in pairs}
    policies = {name: _policy_with_tasks(policy_runs) for name, policy_runs in by_policy.items() if policy_runs}
    bounds = {_reward_bounds(run.info) for run in runs}
    if len(bounds) == 1 and (bound := bounds.pop()):
        low, high = bound
        for policy in policies.values():
            for scope in (policy, *policy["tasks"].values()):
                _keep_within(scope, low, high)
        for comparison in comparisons.values():
            _keep_within(comparison, low - high, high - low)
    return {"policies": policies, "comparisons": _present(comparisons)}


def _reward_bounds(info: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the lowest and the highest reward of a run's evaluation; None if unknown, as of a plugin's reward."""
    choice = info.get("config", {}).get("evaluate", {}).get("reward", "")
    return REWARD_BOUNDS.get(choice.partition(":")[0])


def _keep_within(scope: Mapping[str, Any], low: float, high: float) -> None:
    """Cut the intervals of a scope's step rewards to what is possible: Student's may reach beyond."""
    for fields in scope.get("step_reward", {}).values():
        if fields["ci95"] is not None:
            fields["ci95"] = [min(max(bound, low), high) for bound in fields["ci95"]]


def _run_fields(run: records.RunRecords) -> dict[str, Any]:
    return {name: run.info[name] for name in RUN_FIELDS if name in run.info}


def summarize(workdir: epath.PathLike) -> dict[str, Any]:
    """Return the summary of one run, as in the module's docstring.

    Raises:
      FileNotFoundError: There is no such folder.
      RecordError: A file in it is broken.
    """
    run = records.read_run(workdir)
    return {**figures([run]), "run": _run_fields(run)}


def write_summary(workdir: epath.PathLike) -> dict[str, Any]:
    """Write `summarize` to `report/summary.json` in `workdir`."""
    summary = summarize(workdir)
    directory = epath.Path(workdir) / "report"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def pool_summaries(workdirs: Sequence[epath.PathLike]) -> dict[str, Any]:
    """Return one summary of several runs of the same configuration with different seeds, from their pooled records.

    `policies` and `comparisons` are as for one run: comparisons are paired within a run, states and tasks common to
    several runs count as one cluster, best@k is taken within a run. `runs` holds the summary of each, without its
    tasks.

    Raises:
      ValueError: No workdirs, or the same one twice.
      FileNotFoundError, RecordError: As `summarize`.
    """
    names = [str(workdir) for workdir in workdirs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"workdirs are {names}: give at least one, and each once")
    runs = [records.read_run(workdir) for workdir in workdirs]
    singles = []
    for run in runs:
        single = figures([run])
        policies = {
            name: {field: value for field, value in policy.items() if field != "tasks"}
            for name, policy in single["policies"].items()
        }
        singles.append({"workdir": run.workdir, **single, "policies": policies, "run": _run_fields(run)})
    return {**figures(runs), "runs": singles}
