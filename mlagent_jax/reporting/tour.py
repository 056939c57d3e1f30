"""Terminal output at the end of a first run: what was learned, a trajectory before and after RL, commands to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table
from rich.text import Text

from environments.interfaces.terminal import printable
from mlagent_jax.reporting import records, summary
from mlagent_jax.reporting.findings import learned
from mlagent_jax.reporting.statistics import relative_gain
from mlagent_jax.runtime import jsonl

MAX_LINES = 6
"""Maximum lines of an edit that are shown."""

_Episodes = Mapping[str, Sequence[Mapping[str, Any]]]
"""Episodes of a policy by task."""


def show(workdir: epath.PathLike, console: Console) -> None:
    """Print what the run in `workdir` has to show.

    Raises:
      RecordError: A file of the run is broken.
    """
    figures = summary.summarize(workdir)
    console.rule("What was learned")
    console.print(Text(learned(figures)))
    names = [name for name in records.POLICIES if name in figures["policies"]]
    if len(names) > 1:
        before, after = names[-2:]
        pair = [_episodes(workdir, name) for name in (before, after)]
        task = _most_changed(*pair)
        if task is not None:
            console.rule(Text(f"{task}: a middle trajectory of {before}, and of {after}, where they differ most"))
            columns = Table(show_lines=False, expand=True)
            for name in (before, after):
                columns.add_column(name, ratio=1, overflow="fold")
            columns.add_row(*(_told(_middle(episodes[task])) for episodes in pair))
            console.print(columns)
    console.rule("What to try next")
    tasks = sorted({name for policy in figures["policies"].values() for name in policy["tasks"]})
    console.print(Text(f"report   {workdir}/report/index.html"))
    for command in (
        f"python -m mlagent_jax.report {workdir} --serve",
        f"python -m mlagent_jax.solve --checkpoint={workdir} --task={tasks[0] if tasks else 'iris'} --output=solved",
        f"python -m mlagent_jax.train --config={workdir}/config.json --workdir={workdir}-again --config.seed=1",
    ):
        console.print(Text(command), soft_wrap=True)


def _episodes(workdir: epath.PathLike, policy: str) -> _Episodes:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in jsonl.iterate(epath.Path(workdir) / "evaluation" / f"{policy}.jsonl"):
        if record["kind"] == "episode":
            found.setdefault(record["task"], []).append(record)
    return found


def _gain(episode: Mapping[str, Any]) -> float:
    gain = relative_gain(episode["report_metric"], episode["report_init"], episode["higher_is_better"])
    return 0.0 if gain is None else gain


def _most_changed(before: _Episodes, after: _Episodes) -> str | None:
    """Return the task on which the mean gains of two policies differ most; None if they share none."""
    mean = lambda episodes: sum(map(_gain, episodes)) / len(episodes)  # noqa: E731
    changes = {task: abs(mean(after[task]) - mean(before[task])) for task in after if task in before}
    return max(changes, key=changes.__getitem__, default=None)


def _middle(episodes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return sorted(episodes, key=_gain)[len(episodes) // 2]


def _told(episode: Mapping[str, Any]) -> Text:
    """Return an episode's steps and score. What a policy wrote is text: nothing in it is interpreted."""
    lines = []
    for number, step in enumerate(episode["steps"], start=1):
        outcome = step["outcome"]
        scored = outcome["metric_after"] is not None
        metric = f" {outcome['metric_before']:.3f} -> {outcome['metric_after']:.3f}" if scored else ""
        lines.append(f"{number}. {outcome['kind']}{metric}")
        changed = [line for line in outcome["diff"].splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        shown = changed or step["action"].strip().splitlines()
        lines += [f"   {line}" for line in shown[:MAX_LINES]]
        if len(shown) > MAX_LINES:
            lines.append(f"   [{len(shown) - MAX_LINES} lines more]")
    gain = 100 * _gain(episode)
    name = episode.get("metric") or "score"
    lines.append(f"{name} {episode['report_init']:.3f} -> {episode['report_metric']:.3f}, a gain of {gain:+.1f}%")
    return Text(printable("\n".join(lines)))
