"""Summary as Markdown that also reads well in a terminal: the table of policies, and the table of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlagent_jax.reporting.records import POLICIES, SPLITS

_SPLIT_NAMES = {"held_in": "held-in", "held_out": "held-out"}
_DIFFERENCES = {"rl_minus_sft": "rl - sft", "sft_minus_base": "sft - base"}
_NONE = "-"


def _in_order(policies: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's own policies in the order in which they were made, then other agents."""
    return {name: policies[name] for name in dict.fromkeys([*POLICIES, *policies]) if name in policies}


def _number(value: float | None, percent: bool, signed: bool) -> str:
    if value is None:
        return _NONE
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}%" if percent else f"{value:{sign}.3f}"


def _cell(fields: Mapping[str, Any] | None, name: str, *, percent: bool = False, signed: bool = False) -> str:
    """Format a figure with its interval, if it has one (`best` has none)."""
    if not fields:
        return _NONE
    mean = _number(fields[name], percent, signed)
    ci = fields["ci95"] if name != "best" else None
    return mean if ci is None else f"{mean} [{', '.join(_number(bound, percent, signed) for bound in ci)}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns padded to a common width, the first left-aligned, the others right-aligned."""
    cells = [header, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _gain_rows(sections: Sequence[Mapping[str, Any]], signs: Sequence[bool]) -> list[list[str]]:
    rows = []
    for field, percent, names in (
        ("step_reward", False, {"mean": "step reward"}),
        ("relative_gain", True, {"avg": "relative gain, average", "best": "relative gain, best of {best_of}"}),
    ):
        for name, title in names.items():
            for split in SPLITS:
                cells = [section.get(field, {}).get(split) for section in sections]
                if any(cells):
                    figures = [
                        _cell(f, name, percent=percent, signed=percent or sign)
                        for f, sign in zip(cells, signs, strict=True)
                    ]
                    title = title.format_map(next(filter(None, cells)))
                    rows.append([f"{title}, {_SPLIT_NAMES[split]}", *figures])
    return rows


def policy_table(
    summary: Mapping[str, Any], columns: Mapping[str, str] = _DIFFERENCES, more: Sequence[Sequence[str]] = ()
) -> str:
    """Return figures by policy, with the paired differences, each with its 95% interval if it has one.

    Args:
      columns: Titles of the comparisons to show, by name.
      more: Additional rows, with as many cells.
    """
    policies = _in_order(summary["policies"])
    differences = {name: summary["comparisons"][name] for name in columns if name in summary["comparisons"]}
    header = ["", *policies, *(columns[name] for name in differences)]
    rates = [_number(policy.get("valid_action_rate"), True, False) for policy in policies.values()]
    signs = [*([False] * len(policies)), *([True] * len(differences))]
    rows = [
        ["valid actions", *rates, *([_NONE] * len(differences))],
        *_gain_rows([*policies.values(), *differences.values()], signs),
        *more,
    ]
    unplayed = [f"{name}: {line}" for name, policy in policies.items() for line in policy.get("unplayed", ())]
    return "\n\n".join([markdown(header, rows), *unplayed])


def task_table(summary: Mapping[str, Any]) -> str:
    """Return figures by task and policy."""
    policies = _in_order(summary["policies"])
    rows = []
    for task in sorted({task for policy in policies.values() for task in policy["tasks"]}):
        for name, policy in policies.items():
            figures = policy["tasks"].get(task)
            if figures is None:
                continue
            for split in SPLITS:
                reward = figures.get("step_reward", {}).get(split)
                gain = figures.get("relative_gain", {}).get(split)
                if reward or gain:
                    rate = _number(figures.get("valid_action_rate"), True, False)
                    gains = [_cell(gain, which, percent=True, signed=True) for which in ("avg", "best")]
                    rows.append([task, _SPLIT_NAMES[split], name, rate, _cell(reward, "mean"), *gains])
    return markdown(["task", "split", "policy", "valid", "step reward", "gain, average", "gain, best"], rows)
