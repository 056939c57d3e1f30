"""Time per update in the arms of a timed study, and how long the device waits meanwhile; table and figure.

Seconds of an iteration, which add up to wall-clock time:

    sampling    of this batch, or of the next one while outcomes are awaited
    updating    with or without concurrent sampling of the next batch
    waiting     for outcomes, while the device is idle
    other       checkpoints, records

The first iterations, which compile, are not counted; nor is the last, which has no concurrent sampling.
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
"""Number of first iterations that compile programs; sampling ahead has run everything by the third."""
ACTIVITIES = {"updating": "#4477aa", "sampling": "#66ccee", "waiting": "#ee6677", "other": "#bbbbbb"}


def activities(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the seconds of each counted iteration by activity, and in total (`seconds`), from the metrics of all
    iterations."""
    iterations = []
    for before, row in list(itertools.pairwise(rows))[WARM_UP - 1 : -1]:
        # Sampling ahead starts when the wait starts.
        hidden = min(row["seconds_wait"], row["seconds_sample_ahead"])
        each = {
            "updating": row["seconds_update"],
            "sampling": row["seconds_sample"] + hidden,
            "waiting": row["seconds_wait"] - hidden,
        }
        seconds = row["seconds"] - before["seconds"]
        iterations.append({"seconds": seconds, **each, "other": max(0.0, seconds - sum(each.values()))})
    return iterations


def results(study: Study, root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the figures of the completed arms, by arm and seed."""
    timed: dict[str, dict[str, Any]] = {}
    costs: dict[str, dict[str, Any]] = {}
    for arm in study.all_arms:
        for seed in seeds:
            run = arm_run(root, seed, arm, {})
            if not run.is_done:
                continue
            rows = [row for row in metrics.read(run.workdir) if row["stage"] == "rl"]
            if counted := activities(rows):
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
    means = {name: statistics.mean(each[name] for each in counted) for name in ("seconds", *ACTIVITIES)}
    seconds = [each["seconds"] for each in counted]
    return {
        "updates": len(counted),
        **means,
        "range": [min(seconds), max(seconds)],
        "waiting_share": means["waiting"] / means["seconds"],
        "staleness": statistics.mean(row["staleness"] for row in rows[WARM_UP:-1]),
    }


def note(study: Study, study_results: Mapping[str, Any]) -> str:
    """Describe the set-up, and the lower bound of any schedule."""
    sleep = study.default.sleep
    costs = [each for by_seed in study_results["cost"].values() for each in by_seed.values()]
    batches = {each["actions"] / each["iterations"] for each in costs}
    floors = [batch * sleep.seconds / sleep.workers for batch in sorted(batches)]
    return (
        f"Executions sleep for {sleep.seconds:g} s on {sleep.workers} workers, which need "
        f"{' or '.join(f'{floor:g}' for floor in floors)} s for a batch: no schedule is faster than that, or than the "
        f"device. Rewards are made up. The first {WARM_UP} updates and the last are not counted."
    )


def table(study_results: Mapping[str, Any]) -> str:
    """Return one line per arm and seed."""
    header = ["arm", "seed", "updates", "seconds per update", "lowest to highest", *ACTIVITIES]
    rows = []
    for arm, by_seed in study_results["timing"].items():
        for seed, each in by_seed.items():
            cells = [f"{each[activity]:.2f}" for activity in ACTIVITIES]
            low, high = each["range"]
            figures = [f"{each['seconds']:.2f}", f"{low:.2f} to {high:.2f}", *cells]
            end = [f"{100 * each['waiting_share']:.0f}%", f"{each['staleness']:.1f}"]
            rows.append([arm, seed, f"{each['updates']}", *figures, *end])
    return markdown([*header, "device waits", "staleness"], rows)


def draw(study_results: Mapping[str, Any]) -> str:
    """Return the figure as SVG text: one stacked bar of activities per arm and seed.

    Raises:
      ModuleNotFoundError: matplotlib is not installed (the extra `studies`).
    """
    import matplotlib
    from matplotlib.figure import Figure

    several = len(study_results["seeds"]) > 1
    bars = {
        f"{arm}, seed {seed}" if several else arm: each
        for arm, by_seed in study_results["timing"].items()
        for seed, each in by_seed.items()
    }
    with matplotlib.rc_context({"svg.hashsalt": "study", "font.size": 9}):
        figure = Figure(figsize=(8, 1.4 + 0.5 * len(bars)), layout="constrained")
        axis = figure.subplots()
        left = [0.0] * len(bars)
        for activity, color in ACTIVITIES.items():
            widths = [each[activity] for each in bars.values()]
            label = "waiting (device idle)" if activity == "waiting" else activity
            axis.barh(list(bars), widths, left=left, color=color, label=label)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.invert_yaxis()
        axis.set_xlabel("seconds per update")
        axis.legend(ncols=len(ACTIVITIES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axis.grid(axis="x", color="#dddddd")
        axis.set_axisbelow(True)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
