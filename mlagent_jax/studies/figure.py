"""Figure of a study: one panel per figure of merit, with a dot and 95% interval per arm and small dots for its seeds;
for arms with intermediate evaluations also their gains over machine time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from mlagent_jax.reporting.diversity import MEASURES

_TITLES = {
    ("step_reward", "mean"): "step reward",
    ("relative_gain", "avg"): "relative gain, average",
}
_SPLITS = {"held_in": "held-in", "held_out": "held-out"}


def draw(results: Mapping[str, Any]) -> str:
    """Return the figure as SVG text.

    Raises:
      ModuleNotFoundError: matplotlib is not installed (the extra `studies`).
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = _panels(results)
    curves = {name: points for name, points in results["curves"].items() if len(points) > 1}
    splits = [split for split in _SPLITS if any(split in p for points in curves.values() for p in points)]
    count = len(panels) + len(splits)
    columns = min(2, count)
    rows = -(-count // columns)
    with matplotlib.rc_context({"svg.hashsalt": "study", "font.size": 9}):
        figure = Figure(figsize=(5.2 * columns, 3.1 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (title, figures, seeds) in zip(axes, panels, strict=False):
            _dots(axis, title, figures, seeds)
        for axis, split in zip(axes[len(panels) :], splits, strict=False):
            _lines(axis, split, curves)
        for axis in axes[count:]:
            axis.remove()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _panels(results: Mapping[str, Any]) -> list[tuple[str, dict[str, Mapping[str, Any]], dict[str, list[float]]]]:
    """Return (title, {policy: {"mean", "ci95"}}, {policy: values of its seeds}) of each panel."""
    panels = []
    for (field, key), title in _TITLES.items():
        for split, words in _SPLITS.items():
            figures = {
                name: {"mean": policy[field][split][key], "ci95": policy[field][split]["ci95"]}
                for name, policy in results["policies"].items()
                if split in policy.get(field, {})
            }
            seeds = {
                name: [
                    s[name][field][split]
                    for s in results["by_seed"].values()
                    if split in s.get(name, {}).get(field, {})
                ]
                for name in figures
            }
            if figures:
                panels.append((f"{title}, {words}", figures, seeds))
    for measure, title in MEASURES.items():
        for split, diversity in results["diversity"].get(measure, {}).items():
            panels.append((f"{title}, {_SPLITS[split]}", diversity["policies"], {}))
    return panels


def _dots(
    axis: Any, title: str, figures: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, Sequence[float]]
) -> None:
    for place, (name, fields) in enumerate(figures.items()):
        low, high = fields["ci95"] or (fields["mean"], fields["mean"])
        axis.plot([low, high], [place, place], color="#4477aa", linewidth=2)
        axis.plot(fields["mean"], place, "o", color="#4477aa")
        axis.plot(seeds.get(name, ()), [place + 0.22] * len(seeds.get(name, ())), ".", color="#888888", markersize=4)
    axis.set_yticks(range(len(figures)), figures)
    axis.set_ylim(len(figures) - 0.5, -0.5)
    axis.set_title(title)
    axis.grid(axis="x", color="#dddddd")
    axis.set_axisbelow(True)


def _lines(axis: Any, split: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for name, points in curves.items():
        points = [point for point in points if split in point]
        axis.plot([p["seconds"] for p in points], [100 * p[split]["avg"] for p in points], "o-", label=name)
    axis.set_title(f"relative gain, average, {_SPLITS[split]}")
    axis.set_xlabel("seconds of sampling, executing and updating")
    axis.set_ylabel("%")
    axis.legend()
    axis.grid(color="#dddddd")
