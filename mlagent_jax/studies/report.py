"""Report of a study, in WORKDIR/NAME: `index.html` (one file, needs no network), and its sources `results.json`,
`table.md` and `figure.svg`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mlagent_jax.reporting.diversity import MEASURES
from mlagent_jax.reporting.table import markdown, policy_table
from mlagent_jax.studies import timing
from mlagent_jax.studies.figure import draw
from mlagent_jax.studies.plan import Study
from mlagent_jax.studies.results import ENDS_WITH, pairs, results

_SPLITS = {"held_in": "held-in", "held_out": "held-out"}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ study }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
pre { overflow-x: auto; font-size: 12px; background: #f6f6f6; padding: 1rem; } svg { max-width: 100%; height: auto; }
</style></head><body><h1>{{ study }}</h1><p>{{ question }}</p>
<p>Seeds {{ seeds }}. {{ note }}</p><figure>{{ figure }}</figure><h2>Figures</h2><pre>{{ table }}</pre>
<h2>Cost</h2><pre>{{ cost }}</pre><h2>Arms</h2><pre>{{ arms }}</pre></body></html>
"""
_NOTE = """Figures are means with 95% intervals, over states and tasks that all seeds share; differences are paired by
seed and state, or by task."""


def write_study(study: Study, root: Path, seeds: Sequence[int]) -> Path | None:
    """Write the report of the runs done so far; return its page, or None if there are none.

    Raises:
      RecordError: A run's file is broken.
      ModuleNotFoundError: matplotlib is not installed (the extra `studies`).
    """
    study_results = (timing.results if study.is_timed else results)(study, root, seeds)
    if not study_results["seeds"]:
        return None
    folder = root / study.name
    folder.mkdir(parents=True, exist_ok=True)
    if study.is_timed:
        figure, table, note = timing.draw(study_results), timing.table(study_results), timing.note(study, study_results)
    else:
        figure, table, note = draw(study_results), study_table(study, study_results), _NOTE
    cost = cost_table(study_results)
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    (folder / "results.json").write_text(json.dumps(study_results, indent=1, allow_nan=False) + "\n")
    (folder / "table.md").write_text(f"{table}\n\n{cost}\n")
    (folder / "figure.svg").write_text(figure)
    path = folder / "index.html"
    path.write_text(
        page.render(
            study=study.name,
            question=study.question,
            seeds=", ".join(map(str, study_results["seeds"])),
            note=note,
            figure=Markup(figure[figure.index("<svg") :]),  # noqa: S704 - drawn by us
            table=table,
            cost=cost,
            arms=json.dumps(study_results["arms"], indent=1),
        )
    )
    return path


def study_table(study: Study, study_results: Mapping[str, Any]) -> str:
    """Return all figures by policy, with the differences."""
    columns = {f"{a}_minus_{b}": f"{a} - {b}" for a, b in pairs(study)}
    shown = [name for name in columns if name in study_results["comparisons"]]
    rows = []
    for measure, title in MEASURES.items():
        for split, figures in study_results["diversity"].get(measure, {}).items():
            policies = [_cell(figures["policies"].get(name), "") for name in study_results["policies"]]
            differences = [_cell(figures["differences"].get(name), "+") for name in shown]
            rows.append([f"{title}, {_SPLITS[split]}", *policies, *differences])
    return policy_table(study_results, columns, rows)


def cost_table(study_results: Mapping[str, Any]) -> str:
    """Return the cost of each arm and seed."""
    rows = []
    for arm, seeds in study_results["cost"].items():
        for seed, cost in seeds.items():
            ends = [f"{cost[name]:.3f}" if name in cost else "-" for name in ENDS_WITH]
            rows.append([arm, seed, str(cost["iterations"]), str(cost["actions"]), f"{cost['seconds']:.0f}", *ends])
    titles = ["arm", "seed", "iterations", "actions", "seconds of rl", *ENDS_WITH.values()]
    return markdown(titles, rows) if rows else "no arm is done yet"


def _cell(fields: Mapping[str, Any] | None, sign: str) -> str:
    if not fields:
        return "-"
    interval = fields["ci95"]
    mean = f"{fields['mean']:{sign}.3f}"
    return mean if interval is None else f"{mean} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
