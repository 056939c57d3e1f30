"""Data of the report page, as plain JSON: curves thinned, trajectories sampled, texts cut, to keep it small.

A `RunReader` reads a running run repeatedly. Of files that only grow it reads the new records; results of other files
are cached until a file changes. The page says how many trajectories are not shown.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from mlagent_jax.reporting import records
from mlagent_jax.reporting import summary as summaries
from mlagent_jax.reporting.fleet import fleet
from mlagent_jax.reporting.sample import Sample
from mlagent_jax.reporting.states import StateTable
from mlagent_jax.reporting.statistics import relative_gain
from mlagent_jax.reporting.timeline import timelines
from mlagent_jax.runtime import jsonl, metrics, progress
from mlagent_jax.trajectories.store import StoreTail

_PASSWORD = re.compile(r"(?<=://)([^\s/@:]*):[^\s/@]+@")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Size limits of a run's page."""

    points: int = 1000
    """Maximum points per curve."""
    trajectories: int = 160
    """Maximum trajectories (or single steps) per source: a stage, or the evaluation of a policy."""
    newest: int = 40
    """Number of these reserved for the newest ones of a stage."""
    text: int = 8000
    """Maximum characters of a prompt, action, output or diff; longer ones show head and tail."""
    source_bytes: int = 1_500_000
    """Maximum bytes of JSON for all trajectories of a source."""

    def shared(self, runs: int) -> Limits:
        """Return limits for a page of several runs, which should stay as small as that of one."""
        return dataclasses.replace(
            self,
            trajectories=max(1, self.trajectories // runs),
            newest=self.newest // runs,
            source_bytes=self.source_bytes // runs,
        )


DEFAULT_LIMITS = Limits()


class RunReader:
    """Reader of the run in a workdir, for its page.

    Args:
      workdir: Workdir of the run; local or a URL.
      limits: Size limits.
    """

    def __init__(self, workdir: epath.PathLike, limits: Limits = DEFAULT_LIMITS) -> None:
        self._root, self._limits = epath.Path(workdir), limits
        self._sources: dict[str, _Source] = {}
        self._states = StateTable()
        self._kept: dict[str, tuple[Any, Any]] = {}

    def read(self) -> dict[str, Any]:
        """Return the current state of the run.

        Raises:
          FileNotFoundError: There is no such folder.
          RecordError: A file of the run is broken.
        """
        root = self._root
        summary = self._once("summary", self._summary_files(), lambda: summaries.summarize(root))
        info = records.read_info(root)
        config = self._config(info)
        curve_files = [root / metrics.FILE]
        sources = self._read_sources(config)
        queue = without_passwords(fleet(root, config, info.get("name")))
        return {
            "name": root.name or str(root),
            "workdir": str(root),
            "run": {**summary.get("run", {}), "config": without_passwords(config)},
            "progress": self._progress(info, config),
            "summary": {"policies": summary["policies"], "comparisons": summary["comparisons"]},
            "curves": self._once("curves", curve_files, lambda: curves(metrics.read(root), self._limits.points)),
            "states": self._states.to_dict(config.get("pool", {}).get("max_depth")),
            "fleet": queue and {field: value for field, value in queue.items() if field != "executions"},
            "timelines": timelines(root, queue),
            "trajectories": [item for source in sources for item in source.items],
            "totals": {source.name: source.total for source in sources if source.total},
        }

    # -- files that are written whole --

    def _once(self, name: str, files: Sequence[epath.Path], make: Any) -> Any:
        """Return `make()`, cached until one of `files` changes."""
        stamp = [_stamp(path) for path in files]
        if name not in self._kept or self._kept[name][0] != stamp:
            self._kept[name] = (stamp, make())
        return self._kept[name][1]

    def _summary_files(self) -> list[epath.Path]:
        names = [self._root / "evaluation" / f"{policy}.jsonl" for policy in records.POLICIES]
        return [*names, self._root / "run.json"]

    def _config(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config of the newest start; `run.json` has that of the last completed stage."""
        path = self._root / "config.json"
        config = records.read_object(path) if path.exists() else info.get("config")
        return config if isinstance(config, dict) else {}

    def _progress(self, info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of each stage, the current stage's progress, and the time since it was written."""
        path = self._root / progress.FILE
        current = records.read_object(path) if path.exists() else None
        done, seen, stages = set(info.get("done", ())), [], []
        for name in config.get("stages", ()):
            key = f"{name}.{seen.count(name) + 1}" if name in seen else name
            seen.append(name)
            stages.append({"name": name, "done": key in done, "seconds": info.get("seconds", {}).get(key)})
        return {
            "stages": stages,
            "now": current,
            "age_seconds": None if current is None else max(0.0, time.time() - current.get("written", 0.0)),
        }

    # -- files that grow --

    def _read_sources(self, config: Mapping[str, Any]) -> list[_Source]:
        """Return files with steps, newest kind first: evaluations, then stages."""
        limits, sources = self._limits, []
        for policy in reversed(records.POLICIES):
            sources.append(self._source(f"evaluate {policy}", self._root / "evaluation" / f"{policy}.jsonl", limits))
        folder = self._root / "trajectories"
        for path in sorted(folder.iterdir(), key=str, reverse=True) if folder.exists() else ():
            if path.suffix == ".jsonl" or path.is_dir():
                sources.append(self._source(path.stem, path, limits))
        if elsewhere := config.get("pool", {}).get("trajectories"):
            # Another run's expert steps: their states are in this run's pool, their trajectories on that run's page.
            path = epath.Path(elsewhere) / "trajectories" / "collect"
            self._source("pool", path, dataclasses.replace(limits, trajectories=1)).read(self._states)
        for source in sources:
            source.read(self._states)
        return sources

    def _source(self, name: str, path: epath.Path, limits: Limits) -> _Source:
        return self._sources.setdefault(name, _Source(name, path, limits))


class _Source:
    """Sample of the steps in one file or store, kept up to date."""

    def __init__(self, name: str, path: epath.Path, limits: Limits) -> None:
        self.name, self._limits = name, limits
        self._tail = jsonl.Tail(path) if path.suffix == ".jsonl" else StoreTail(path)
        self._sample = self._empty()
        self.items: list[dict[str, Any]] = []
        self._shown_of = 0

    @property
    def total(self) -> int:
        """Return the number of trajectories in the file."""
        return self._sample.total

    def _empty(self) -> Sample:
        newest = self._limits.newest if self.name == "rl" else 0
        return Sample(self.name in ("collect", "pool"), self._limits.trajectories, newest)

    def read(self, states: StateTable) -> None:
        """Read the new records of the file."""
        restarted, new = self._tail.new()
        expert, drawn = self.name in ("collect", "pool"), self.name == "rl"
        if restarted:
            self._sample, self._shown_of = self._empty(), -1
            if expert:
                states.forget_expert()
            if drawn:
                states.forget_drawn()
        seen = _Counter(new)
        self._sample.add(states.add_expert(seen) if expert else states.add_drawn(seen) if drawn else seen)
        if seen.count or self._shown_of < 0:
            self.items, self._shown_of = self._shown(), self.total

    def _shown(self) -> list[dict[str, Any]]:
        """Return the sample as shown on the page, as far as its size allows, in file order; episodes first, because
        they show more than single steps."""
        kept, size = [], 0
        for number, group in self._sample.groups():
            item = _item(self.name, group, self._limits.text)
            size += len(json.dumps(item))
            if kept and size > self._limits.source_bytes:
                break
            kept.append((number, item))
        return [item for _, item in sorted(kept, key=lambda pair: ("score" not in pair[1], pair[0]))]


class _Counter:
    """Iterable that counts its records."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._records, self.count = records, 0

    def __iter__(self) -> Iterable[Mapping[str, Any]]:
        for record in self._records:
            self.count += 1
            yield record


def _stamp(path: epath.Path) -> tuple[int, float] | None:
    """Return a value that changes whenever the file does."""
    if not path.exists():
        return None
    if "://" not in os.fspath(path):
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    stat = path.stat()
    return stat.length, stat.mtime


def without_passwords(data: Any) -> Any:
    """Replace the passwords of all URLs in the texts of `data`."""
    if isinstance(data, str):
        return _PASSWORD.sub(r"\1:***@", data)
    if isinstance(data, Mapping):
        return {name: without_passwords(value) for name, value in data.items()}
    return [without_passwords(value) for value in data] if isinstance(data, list | tuple) else data


def page_data(
    runs: Sequence[Mapping[str, Any]], pooled: Mapping[str, Any] | None = None, *, live: float = 0.0
) -> dict[str, Any]:
    """Return all data of a page: of one run, or of several to compare.

    Args:
      runs: Results of `RunReader.read`.
      pooled: Pooled summary of the runs (`summary.pool_summaries`).
      live: Seconds between updates of a served page; 0 for a file.
    """
    names = [run["name"] for run in runs]
    # Runs with equal names, `a/seed` and `b/seed`, are shown by their paths.
    titles = [run["workdir"] if names.count(run["name"]) > 1 else run["name"] for run in runs]
    return {
        "live": live,
        "written": time.time(),
        "runs": [{**run, "name": title} for run, title in zip(runs, titles, strict=True)],
        "pooled": pooled and {"policies": pooled["policies"], "comparisons": pooled["comparisons"]},
    }


# -- curves --


def curves(log: Iterable[Mapping[str, Any]], points: int) -> list[dict[str, Any]]:
    """Return each scalar of each stage: `{"stage", "name", "points": [[step, seconds, value] ...]}`, finite values
    only."""
    series: dict[tuple[str, str], list[list[float]]] = {}
    for record in log:
        for name, value in record.items():
            if name not in metrics.RESERVED and math.isfinite(value):
                point = [record["step"], round(record["seconds"], 1), float(f"{value:.6g}")]
                series.setdefault((record["stage"], name), []).append(point)
    return [{"stage": stage, "name": name, "points": thin(data, points)} for (stage, name), data in series.items()]


def thin(points: list[list[float]], limit: int) -> list[list[float]]:
    """Return at most `limit` of `points` [step, seconds, value]: lowest and highest of each interval, so that peaks
    stay."""
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


def _item(source: str, group: Sequence[Mapping[str, Any]], text: int) -> dict[str, Any]:
    """Return one entry of the trajectory browser: a single step, an episode or an expert trajectory."""
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
    """Return head and tail of a long text, with the number of omitted characters between them."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[head - limit :]}"
