"""Sentences that say what a run's figures mean: what was learned and by how much, what devices waited for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_SPLITS = {"held_out": "tasks never trained on", "held_in": "tasks trained on"}
_STEPS = (("rl_minus_sft", "rl", "sft"), ("sft_minus_base", "sft", "base"), ("rl_minus_base", "rl", "base"))
_MEASURES = (
    ("step_reward", "mean", "mean step reward", lambda value: f"{value:.3f}"),
    ("relative_gain", "avg", "relative gain", lambda value: f"{100 * value:.1f}%"),
)


def learned(summary: Mapping[str, Any]) -> str:
    """Return the sentence of what was learned: the last policy against the one before, where both were measured.

    Args:
      summary: As `summary.summarize` returns.
    """
    for comparison, policy, before in _STEPS:
        for split, tasks in _SPLITS.items():
            for measure, field, title, show in _MEASURES:
                difference = summary["comparisons"].get(comparison, {}).get(measure, {}).get(split)
                figures = [summary["policies"].get(name, {}).get(measure, {}).get(split) for name in (before, policy)]
                if difference and all(figures):
                    values = " to ".join(show(each[field]) for each in figures)
                    return f"{_verdict(policy, before, difference, field, show)}: {title} {values} on {tasks}."
    names = " and ".join(summary["policies"]) or "no policy"
    return f"Nothing can be said about learning yet: evaluated so far is {names}, a comparison needs two policies."


def _verdict(policy: str, before: str, difference: Mapping[str, Any], field: str, show: Any) -> str:
    change, interval = difference[field], difference["ci95"]
    by = f"{'+' if change >= 0 else '-'}{show(abs(change))}"
    if interval is None:
        return f"{policy} differs from {before} by {by}, of which a single unit says nothing certain"
    bounds = ", ".join(f"{'+' if bound >= 0 else '-'}{show(abs(bound))}" for bound in interval)
    if interval[0] > 0:
        return f"{policy} is better than {before} by {by} (95% interval {bounds})"
    if interval[1] < 0:
        return f"{policy} is worse than {before} by {by} (95% interval {bounds})"
    return f"{policy} is not told apart from {before}: {by} (95% interval {bounds} includes 0)"


def waited(log: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the share of rl's time in which devices waited for executions; None without an iteration.

    Args:
      log: Records of `metrics.jsonl`.
    """
    seconds = {"sample": 0.0, "wait": 0.0, "update": 0.0}
    for record in log:
        if record["stage"] == "rl":
            for name in seconds:
                seconds[name] += record.get(f"seconds_{name}", 0.0)
    total = sum(seconds.values())
    return seconds["wait"] / total if total > 0 else None
