"""What an update takes in the arms of a study of time, and how long the device waits meanwhile; its table and figure.

Seconds of an iteration, which add up to those on the wall:

    sampling    of this batch, or of one ahead while outcomes are waited for
    updating    with one ahead sampled beside it, or not
    waiting     for outcomes, with nothing for the device to do
    other       checkpoints, records

The first iterations, which compile, are not counted; nor the last, beside which nothing is sampled.
"""

from __future__ import annotations

import io
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlagent_jax.reporting.table import markdown
from mlagent_jax.runtime import metrics
from mlagent_jax.studies.plan import Study, arm_run
from mlagent_jax.studies.results import cost, plain

WARM_UP = 3
"""Iterations in which programs are compiled: with the third, all that one ahead needs have run."""
PARTS = {"updating": "#4477aa", "sampling": "#66ccee", "waiting": "#ee6677", "other": "#bbbbbb"}


def parts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Seconds of each counted iteration by part, and `seconds` in all, from the metrics of all iterations in order."""
    found = []
    for before, row in list(itertools.pairwise(rows))[WARM_UP - 1 : -1]:
        # Sampling ahead begins as the wait does.
        hidden = min(row["seconds_wait"], row["seconds_sample_ahead"])
        each = {
            "updating": row["seconds_update"],
            "sampling": row["seconds_sample"] + hidden,
            "waiting": row["seconds_wait"] - hidden,
        }
        seconds = row["seconds"] - before["seconds"]
        found.append({"seconds": seconds, **each, "other": max(0.0, seconds - sum(each.values()))})
    return found


def results(study: Study, root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Figures of the arms that are done, by arm and seed."""
    timed: dict[str, dict[str, Any]] = {}
    costs: dict[str, dict[str, Any]] = {}
    for arm in study.all_arms:
        for seed in seeds:
            run = arm_run(root, seed, arm, {})
            if not run.is_done:
                continue
            rows = [row for row in metrics.read(run.workdir) if row["stage"] == "rl"]
            if counted := parts(rows):
                timed.setdefault(arm.name, {})[f"{seed}"] = _figures(counted, rows)
                costs.setdefault(arm.name, {})[f"{seed}"] = cost(run.workdir)
    return {
        "study": study.name,
        "question": study.question,
        "seeds": [seed for seed in seeds if any(f"{seed}" in by_seed for by_seed in timed.values())],
        "arms": {arm.name: {"settings": plain(arm.settings)} for arm in study.all_arms},
        "timing": timed,
        "cost": costs,
    }


def _figures(counted: Sequence[Mapping[str, float]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {name: statistics.mean(each[name] for each in counted) for name in ("seconds", *PARTS)}
    seconds = [each["seconds"] for each in counted]
    return {
        "updates": len(counted),
        **means,
        "range": [min(seconds), max(seconds)],
        "waiting_share": means["waiting"] / means["seconds"],
        "staleness": statistics.mean(row["staleness"] for row in rows[WARM_UP:-1]),
    }


def note(study: Study, found: Mapping[str, Any]) -> str:
    """What was done, and what no schedule can beat."""
    sleep = study.default.sleep
    costs = [each for by_seed in found["cost"].values() for each in by_seed.values()]
    batches = {each["actions"] / each["iterations"] for each in costs}
    floors = [batch * sleep.seconds / sleep.workers for batch in sorted(batches)]
    return (
        f"Executions sleep for {sleep.seconds:g} s on {sleep.workers} workers, which need "
        f"{' or '.join(f'{floor:g}' for floor in floors)} s for a batch: no schedule is faster than that, or than the "
        f"device. Rewards are made up. The first {WARM_UP} updates and the last are not counted."
    )


def table(found: Mapping[str, Any]) -> str:
    """One line an arm and seed."""
    header = ["arm", "seed", "updates", "seconds per update", "lowest to highest", *PARTS]
    rows = []
    for arm, by_seed in found["timing"].items():
        for seed, each in by_seed.items():
            cells = [f"{each[part]:.2f}" for part in PARTS]
            low, high = each["range"]
            figures = [f"{each['seconds']:.2f}", f"{low:.2f} to {high:.2f}", *cells]
            end = [f"{100 * each['waiting_share']:.0f}%", f"{each['staleness']:.1f}"]
            rows.append([arm, seed, f"{each['updates']}", *figures, *end])
    return markdown([*header, "device waits", "staleness"], rows)


def draw(found: Mapping[str, Any]) -> str:
    """The figure as SVG text: a bar an arm and seed, its parts beside each other.

    Raises:
      ModuleNotFoundError: matplotlib is not installed (the extra `studies`).
    """
    import matplotlib
    from matplotlib.figure import Figure

    several = len(found["seeds"]) > 1
    bars = {
        f"{arm}, seed {seed}" if several else arm: each
        for arm, by_seed in found["timing"].items()
        for seed, each in by_seed.items()
    }
    with matplotlib.rc_context({"svg.hashsalt": "study", "font.size": 9}):
        figure = Figure(figsize=(8, 1.4 + 0.5 * len(bars)), layout="constrained")
        axis = figure.subplots()
        left = [0.0] * len(bars)
        for part, color in PARTS.items():
            widths = [each[part] for each in bars.values()]
            label = "waiting (device idle)" if part == "waiting" else part
            axis.barh(list(bars), widths, left=left, color=color, label=label)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.invert_yaxis()
        axis.set_xlabel("seconds per update")
        axis.legend(ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
