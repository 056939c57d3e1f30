"""What the report page shows, as plain JSON data: curves thinned, trajectories sampled, texts cut, to keep it small.

The page says how many trajectories were left out. The sample is the same every time, and even over tasks and outcomes:
of each (task, outcome) those with the smallest hash of their place in the file are kept (bottom-k sampling), in one
pass over files of any size.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mlagent_jax.data import jsonl
from mlagent_jax.reporting import metrics, records
from mlagent_jax.reporting.statistics import relative_gain


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much of a run goes into its page."""

    points: int = 1000
    """Points of a curve."""
    trajectories: int = 160
    """Trajectories (or single steps) of each source: a stage, or the evaluation of a policy."""
    text: int = 8000
    """Characters of a prompt, action, output or diff; of longer ones the head and the tail are shown."""
    source_bytes: int = 1_500_000
    """JSON of all trajectories of a source."""


DEFAULT_LIMITS = Limits()


def page_data(workdir: epath.PathLike, summary: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Everything that the page of the run in `workdir` shows, beside `summary` (of `summary.summarize`).

    Raises:
      RecordError: a file of the run is broken.
    """
    root = epath.Path(workdir)
    info = records.read_info(root)
    sources = {name: _source(name, items, limits) for name, items in _sources(root)}
    return {
        "name": root.name or str(root),
        "run": {**summary.get("run", {}), "config": info.get("config", {})},
        "summary": {"policies": summary["policies"], "comparisons": summary["comparisons"]},
        "curves": curves(metrics.read(root), limits.points),
        "trajectories": [item for items, _ in sources.values() for item in items],
        "totals": {name: total for name, (_, total) in sources.items() if total},
    }


# -- curves --


def curves(log: Iterable[Mapping[str, Any]], points: int) -> list[dict[str, Any]]:
    """Each scalar of each stage: `{"stage", "name", "points": [[step, seconds, value] ...]}`, values finite."""
    series: dict[tuple[str, str], list[list[float]]] = {}
    for record in log:
        for name, value in record.items():
            if name not in metrics.RESERVED and math.isfinite(value):
                point = [record["step"], round(record["seconds"], 1), float(f"{value:.6g}")]
                series.setdefault((record["stage"], name), []).append(point)
    return [{"stage": stage, "name": name, "points": thin(data, points)} for (stage, name), data in series.items()]


def thin(points: list[list[float]], limit: int) -> list[list[float]]:
    """At most `limit` of `points` [step, seconds, value]: lowest and highest of each stretch, so that peaks stay."""
    if len(points) <= limit:
        return points
    stretches = max(1, limit // 2)
    kept = []
    for index in range(stretches):
        stretch = points[len(points) * index // stretches : len(points) * (index + 1) // stretches]
        extremes = {stretch.index(end(stretch, key=lambda point: point[2])) for end in (min, max)}
        kept += [stretch[place] for place in sorted(extremes)]
    return kept


# -- trajectories --


def _sources(root: epath.Path) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """Files with steps, by what the page calls them, the last made first: evaluations, then stages."""
    for policy in reversed(records.POLICIES):
        yield f"evaluate {policy}", jsonl.iterate(root / "evaluation" / f"{policy}.jsonl")
    folder = root / "trajectories"
    for path in sorted(folder.glob("*.jsonl"), key=str, reverse=True) if folder.exists() else ():
        yield path.stem, jsonl.iterate(path)


def _source(name: str, items: Iterable[Mapping[str, Any]], limits: Limits) -> tuple[list[dict[str, Any]], int]:
    """A sample of the trajectories of a source, and how many there are."""
    strata: dict[Hashable, _BottomK] = collections.defaultdict(lambda: _BottomK(limits.trajectories))
    for number, record in enumerate(items):
        # Steps of one of the expert's trajectories are records of their own; elsewhere a record stands alone.
        whole = name == "collect" and "trajectory" in record
        key = (record["task"], record.get("split"), record["trajectory"]) if whole else number
        kind = None if whole or record.get("kind") == "episode" else record["outcome"]["kind"]
        strata[record["task"], kind].add(key, number, record)
    groups = [stratum.groups() for _, stratum in sorted(strata.items(), key=lambda item: str(item[0]))]
    total = sum(stratum.seen for stratum in strata.values())
    kept, size = [], 0
    for number, group in _round_robin(groups, limits.trajectories):
        item = _item(name, group, limits.text)
        size += len(json.dumps(item))
        if kept and size > limits.source_bytes:
            break
        kept.append((number, item))
    # Episodes first: they tell more than single steps.
    return [item for _, item in sorted(kept, key=lambda pair: ("score" not in pair[1], pair[0]))], total


def _round_robin(groups: Sequence[Sequence[Any]], limit: int) -> Iterable[Any]:
    """The first of every group, then the second of every group ..., `limit` in all."""
    rounds = itertools.zip_longest(*groups)
    return itertools.islice((item for items in rounds for item in items if item is not None), limit)


class _BottomK:
    """Of the keys seen, the `size` with the smallest hashes, each with all its records."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[Hashable, tuple[int, list[Mapping[str, Any]]]] = {}
        self._ranks: dict[Hashable, str] = {}
        self._seen: set[Hashable] = set()

    @property
    def seen(self) -> int:
        """How many keys there were."""
        return len(self._seen)

    def add(self, key: Hashable, number: int, record: Mapping[str, Any]) -> None:
        self._seen.add(key)
        if key not in self._kept:
            self._ranks[key] = hashlib.sha256(repr(key).encode()).hexdigest()
            self._kept[key] = (number, [])
        self._kept[key][1].append(record)
        if len(self._kept) > self._size:
            # A key that is put out has a larger rank than all that stay, so its later records go the same way.
            last = max(self._ranks, key=self._ranks.__getitem__)
            del self._kept[last], self._ranks[last]

    def groups(self) -> list[tuple[int, list[Mapping[str, Any]]]]:
        """(place in the file, records) of each key, by rank."""
        return [self._kept[key] for key in sorted(self._kept, key=self._ranks.__getitem__)]


def _item(source: str, group: Sequence[Mapping[str, Any]], text: int) -> dict[str, Any]:
    """One entry of the trajectory browser: a single step, an episode or one of the expert's trajectories."""
    first = group[0]
    steps = first["steps"] if first.get("kind") == "episode" else sorted(group, key=lambda step: step.get("step", 0))
    item = {
        "source": source,
        "split": first.get("split"),
        "task": first["task"],
        "steps": [_step(step, text) for step in steps],
    }
    if first.get("kind") == "episode":
        score, start = float(first["report_metric"]), float(first["report_init"])
        item |= {"episode": first.get("trajectory"), "score": score, "start": start}
        item["gain"] = relative_gain(score, start, first["higher_is_better"])
    elif source == "collect":
        item["episode"] = first.get("trajectory")
    else:
        item |= {"step": first.get("step"), "sample": first.get("sample", first.get("trajectory"))}
    return {name: value for name, value in item.items() if value is not None}


def _step(step: Mapping[str, Any], text: int) -> dict[str, Any]:
    outcome = step["outcome"]
    shown = {
        "prompt": cut(step["prompt"], text),
        "action": cut(step["action"], text),
        "output": cut(outcome["observation"], text),
        "diff": cut(outcome["diff"], text),
        "kind": outcome["kind"],
        "name": outcome["action_name"],
        "reward": outcome["reward"],
        "before": outcome["metric_before"],
        "after": outcome["metric_after"],
        "init": outcome["scale"]["m_init"],
        "best": outcome["scale"]["m_best"],
        "seconds": round(outcome["seconds"], 3),
        "reason": cut(outcome["reason"], 500),
    }
    return {name: value for name, value in shown.items() if value not in (None, "")}


def cut(text: str, limit: int) -> str:
    """Head and tail of a long text, with the number of characters left out between them."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[head - limit :]}"
