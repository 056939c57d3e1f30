"""Benchmark table of a run's episodes: agents by task, average and best score as in the paper's Table 1.

Written to `report/benchmark.json`, `.csv`, `.md` and `.html`. Scores are of the report half of the hidden labels.

    avg@n       mean over the trajectories of a task
    best@n      expected best of n of them
    gain        relative gain over the starting script, positive is better
    intervals   95%; per task over its trajectories, per agent over tasks (`Student` below 10 units, see
                `statistics`), and for these tasks only by resampling trajectories within each task

Episodes with an infrastructure error are excluded and counted.
"""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from environments.protocol import OutcomeKind
from mlagent_jax.evaluation import unplayed
from mlagent_jax.reporting import published, records, statistics
from mlagent_jax.reporting.records import EpisodeRecord
from mlagent_jax.reporting.table import markdown


@dataclasses.dataclass(frozen=True)
class Cell:
    """One agent on one task."""

    avg: float
    best: float
    n: int
    """Number of trajectories."""
    best_of: int
    ci95: tuple[float, float] | None
    """Interval of `avg`."""
    gain: float | None
    """Relative gain of the average; None if the starting script scores 0."""
    valid: float
    """Fraction of valid actions."""
    tokens: float
    seconds: float
    cost: float
    """Cost per trajectory; `tokens` and `seconds` are per trajectory too."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One task."""

    task: str
    split: str
    metric: str
    higher_is_better: bool
    start: float
    """Score of the starting script."""
    cells: dict[str, Cell]
    """Results by agent."""
    published: dict[str, tuple[float, float]]
    """Published average and best by agent; empty if the paper does not have the task."""


def _whole(episode: EpisodeRecord) -> bool:
    return all(action.kind is not OutcomeKind.INFRASTRUCTURE_ERROR for action in episode.actions)


def _cell(episodes: Sequence[EpisodeRecord]) -> Cell:
    scores = [episode.score for episode in episodes]
    sign = 1 if episodes[0].higher_is_better else -1
    k = min(len(scores), *(episode.best_of for episode in episodes))
    estimate = statistics.clustered_mean(scores, range(len(scores)))
    actions = [action for episode in episodes for action in episode.actions]
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    return Cell(
        avg=estimate.mean,
        best=sign * statistics.expected_best([sign * score for score in scores], k),
        n=len(scores),
        best_of=k,
        ci95=estimate.ci95,
        gain=statistics.relative_gain(estimate.mean, episodes[0].start, episodes[0].higher_is_better),
        valid=mean(action.valid for action in actions) if actions else 0.0,
        tokens=mean(episode.prompt_tokens + episode.completion_tokens for episode in episodes),
        seconds=mean(episode.seconds for episode in episodes),
        cost=mean(episode.cost for episode in episodes),
    )


def rows(policies: Mapping[str, records.PolicyRecords]) -> list[Row]:
    """Return one row per task with episodes, held-in tasks first."""
    tasks: dict[tuple[str, str], dict[str, list[EpisodeRecord]]] = {}
    for name, policy in policies.items():
        for episode in filter(_whole, policy.episodes):
            tasks.setdefault((episode.split, episode.task), {}).setdefault(name, []).append(episode)
    table = []
    for (split, task), agents in sorted(tasks.items(), key=lambda item: (item[0][0], item[0][1])):
        first = next(iter(agents.values()))[0]
        cells = {name: _cell(episodes) for name, episodes in agents.items()}
        table.append(
            Row(task, split, first.metric, first.higher_is_better, first.start, cells, published.TABLE.get(task, {}))
        )
    return table


def _totals(policy: records.PolicyRecords) -> dict[str, Any]:
    """Return one agent's figures over all its tasks."""
    episodes = list(filter(_whole, policy.episodes))
    gains: dict[str, list[float]] = {}
    for episode in episodes:
        gain = statistics.relative_gain(episode.score, episode.start, episode.higher_is_better)
        if gain is not None:
            gains.setdefault(episode.task, []).append(gain)
    actions = [action for episode in episodes for action in episode.actions]
    totals: dict[str, Any] = {
        "episodes": len(episodes),
        "left_out": len(policy.episodes) - len(episodes),
        "unplayed": unplayed.told(each for each in policy.unplayed if each.what != "states"),
        "valid_action_rate": sum(action.valid for action in actions) / len(actions) if actions else None,
        "prompt_tokens": sum(episode.prompt_tokens for episode in episodes),
        "completion_tokens": sum(episode.completion_tokens for episode in episodes),
        "seconds": sum(episode.seconds for episode in episodes),
        "cost": sum(episode.cost for episode in episodes),
    }
    medals = [episode.medal for episode in episodes if episode.medal]
    if medals:
        totals["medals"] = {name: medals.count(name) for name in ("gold", "silver", "bronze", "none")}
    if gains:
        k = min(episode.best_of for episode in episodes)
        over_tasks = statistics.clustered_mean([float(np.mean(values)) for values in gains.values()], list(gains))
        best = [statistics.expected_best(values, k) for values in gains.values()]
        totals |= {
            "gain_avg": over_tasks.mean,
            "gain_ci95_tasks": over_tasks.ci95,
            "gain_ci95_trajectories": statistics.stratified_interval(list(gains.values())),
            "gain_best": float(np.mean(best)),
            "best_of": k,
        }
    return totals


def benchmark(workdir: epath.PathLike) -> dict[str, Any]:
    """Return the whole table as JSON data.

    Raises:
      FileNotFoundError: There is no such folder.
      RecordError: A file in it is broken.
    """
    policies = {name: policy for name, policy in records.read_run(workdir).policies.items()}
    policies = {name: policy for name, policy in policies.items() if policy.episodes or policy.unplayed}
    return {
        "agents": {name: _totals(policy) for name, policy in policies.items()},
        "tasks": [dataclasses.asdict(row) for row in rows(policies)],
        "published": {"source": published.SOURCE, "columns": list(published.COLUMNS)},
    }


def write_benchmark(workdir: epath.PathLike) -> dict[str, Any]:
    """Write `benchmark` in all four formats to `report/` of the run in `workdir`."""
    data = benchmark(workdir)
    folder = epath.Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    (folder / "benchmark.csv").write_text(as_csv(data))
    (folder / "benchmark.md").write_text(as_markdown(data))
    (folder / "benchmark.html").write_text(as_html(data))
    return data


def as_csv(data: Mapping[str, Any]) -> str:
    """Return one line per agent and task; published ones are marked in the column `published`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    measured = ("n", "best_of", "gain", "valid", "tokens", "seconds", "cost")
    head = ("task", "split", "metric", "direction", "start", "agent", "published", "avg", "low95", "high95", "best")
    writer.writerow((*head, *measured))
    for row in data["tasks"]:
        head = [row["task"], row["split"], row["metric"], "up" if row["higher_is_better"] else "down", row["start"]]
        for name, cell in row["cells"].items():
            low, high = cell["ci95"] or ("", "")
            figures = ["" if cell[field] is None else cell[field] for field in measured]
            writer.writerow([*head, name, "no", cell["avg"], low, high, cell["best"], *figures])
        for name, (average, best) in row["published"].items():
            writer.writerow([*head[:4], "", name, "yes", average, "", "", best, *[""] * len(measured)])
    return file.getvalue()


def _score(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _table(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: average / best by task and agent, then an agent's figures over tasks."""
    agents = list(data["agents"])
    shown = [name for name in published.COLUMNS if any(name in row["published"] for row in data["tasks"])]
    body = []
    for row in data["tasks"]:
        label = f"{row['task']} ({row['metric']} {'up' if row['higher_is_better'] else 'down'})"
        cells = []
        for name in agents:
            cell = row["cells"].get(name)
            ci = "" if not cell or cell["ci95"] is None else f" [{', '.join(map(_score, cell['ci95']))}]"
            cells.append(f"{_score(cell['avg'])}{ci} / {_score(cell['best'])}" if cell else "-")
        theirs = [row["published"].get(name) for name in shown]
        cells += [" / ".join(map(_score, pair)) if pair else "-" for pair in theirs]
        body.append([label, row["split"].replace("_", "-"), _score(row["start"]), *cells])
    medals = (
        [("medals: gold, silver, bronze, none", _medals)]
        if any("medals" in data["agents"][name] for name in agents)
        else []
    )
    for title, show in (*_SUMMARY, *medals):
        figures = [show(data["agents"][name]) for name in agents]
        body.append([title, "all", "-", *figures, *["-"] * len(shown)])
    return ["task", "split", "start", *agents, *(f"{name} (published)" for name in shown)], body


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}%"


def _gain(totals: Mapping[str, Any], field: str) -> str:
    interval = totals.get(field)
    return _percent(totals.get("gain_avg")) + (f" [{', '.join(map(_percent, interval))}]" if interval else "")


def _medals(totals: Mapping[str, Any]) -> str:
    return ", ".join(map(str, totals["medals"].values())) if "medals" in totals else "-"


_SUMMARY = (
    ("relative gain, average [other tasks]", lambda t: _gain(t, "gain_ci95_tasks")),
    ("relative gain, average [these tasks]", lambda t: _gain(t, "gain_ci95_trajectories")),
    ("relative gain, best", lambda t: _percent(t.get("gain_best"))),
    ("valid actions", lambda t: "-" if t["valid_action_rate"] is None else f"{100 * t['valid_action_rate']:.1f}%"),
    ("episodes", lambda t: str(t["episodes"]) + (f" ({t['left_out']} left out)" if t["left_out"] else "")),
    ("tokens, prompt + reply", lambda t: f"{t['prompt_tokens']} + {t['completion_tokens']}"),
    ("seconds", lambda t: f"{t['seconds']:.0f}"),
    ("cost", lambda t: f"{t['cost']:.4f}"),
)
_NOTE = (
    "Average with its 95% interval / best. Gains are relative to the starting script, positive is better. Columns "
    f"marked (published) are those of {published.SOURCE}, best of 8, on other hidden labels and hardware."
)


def as_markdown(data: Mapping[str, Any]) -> str:
    return "\n\n".join([markdown(*_table(data)), *_unplayed(data), _NOTE]) + "\n"


def _unplayed(data: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {line}." for name, totals in data["agents"].items() for line in totals["unplayed"]]


def as_html(data: Mapping[str, Any]) -> str:
    """Return a self-contained page without a script."""
    header, body = _table(data)
    line = lambda tag, cells: (  # noqa: E731
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
    )
    style = (
        "body{font:14px system-ui;margin:2em}table{border-collapse:collapse}th,td{padding:4px 10px;text-align:right;"
        "border-bottom:1px solid #ccc;white-space:nowrap}th:first-child,td:first-child{text-align:left}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmark</title><style>{style}</style>'
        f"<h1>Benchmark</h1><table><thead>{line('th', header)}</thead><tbody>"
        + "".join(line("td", row) for row in body)
        + "</tbody></table>"
        + "".join(f"<p>{html.escape(text)}</p>" for text in (*_unplayed(data), _NOTE))
        + "</html>\n"
    )
