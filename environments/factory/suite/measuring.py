"""Measures one candidate: tries targets of its table, keeps tasks that pass, and says why others are dropped.

    table -> targets -> plan -> folder -> cross-validation -> sandbox (start, reference) -> leaks, shortcuts

A Result is plain JSON, the same for the same table and seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from environments import tasks
from environments.factory.choices import Wishes, choose
from environments.factory.profile import Profile, looks_like_group, looks_like_time, profile
from environments.factory.reading import RawTable, RefusalError
from environments.factory.sources.base import Candidate
from environments.factory.writing import Origin, task_name, write
from environments.sandbox.base import Sandbox
from environments.tasks.check.examination import examine
from environments.tasks.running import run_script
from environments.tasks.task import TaskError

MOST_ROWS = 4000
"""Maximum number of rows of a suite's task; larger tables are sampled."""
MOST_COLUMNS = 100
PER_TABLE = 3
"""Maximum number of tasks of one table, each with another target."""
_ATTEMPTS = 5
"""Maximum number of targets tried."""
LIMIT = 10.0
"""CPU seconds of an execution."""
_SLOW = 0.3
"""Maximum share of the limit that a script may take."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Outcome of one target of a candidate."""

    key: str
    """Candidate and target: `package/table#target`."""
    dropped: str = ""
    """Reason, if it was dropped."""
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Index entry of a kept task."""


def fingerprint(raw: RawTable) -> tuple[str, ...]:
    """Return a digest of each column's cells as a set, for the detection of copies of a table."""
    return tuple(
        sorted(
            hashlib.sha256("\0".join(sorted(raw.cells[name].tolist())).encode()).hexdigest()[:16]
            for name in raw.cells
            if raw.cells[name].nunique() > 2
        )
    )


def sampled(raw: RawTable, seed: int) -> RawTable:
    """Return at most `MOST_ROWS` rows in their order, and at most `MOST_COLUMNS` columns."""
    cells = raw.cells.iloc[:, :MOST_COLUMNS]
    if len(cells) > MOST_ROWS:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(cells))[:MOST_ROWS])
        cells = cells.iloc[chosen].reset_index(drop=True)
    return dataclasses.replace(raw, cells=cells)


def targets(found: Profile, key: str, seed: int) -> list[str]:
    """Return columns that may be targets, alternately classes and numbers, in an order drawn from the seed."""
    classes, numbers = [], []
    for name, column in found.columns.items():
        if column.missing > 0.2 * found.rows or looks_like_time(name) or looks_like_group(name):
            continue  # When or of whom a row is, is no question.
        if column.role == "number" and column.distinct > 15:
            numbers.append(name)
        elif column.role in ("category", "number") and 2 <= column.distinct <= 12:
            classes.append(name)
    digest = hashlib.sha256(f"{key}\0{seed}".encode()).digest()
    rng = np.random.default_rng(list(digest[:8]))
    both = [[group[place] for place in rng.permutation(len(group))] for group in (classes, numbers)]
    if digest[8] % 2:
        both.reverse()
    longest = max(map(len, both))
    return [name for place in range(longest) for group in both for name in group[place : place + 1]][:_ATTEMPTS]


def consider(raw: RawTable | None, candidate: Candidate, folder: Path, sandbox: Sandbox, seed: int) -> list[Result]:
    """Make tasks of a candidate's table in `folder`, and measure them; a candidate that is a task is measured.

    Raises:
      SandboxError: the sandbox failed.
    """
    if raw is None:
        try:
            return [Result(candidate.key, entry=_existing(candidate, sandbox, seed))]
        except TaskError as error:
            return [Result(candidate.key, _reason(error))]
    raw = sampled(raw, seed)
    if raw.cells.shape[1] < 2 or len(raw.cells) < 2:
        return [Result(candidate.key, "too few rows or columns")]
    tried = list(candidate.targets) or targets(profile(raw.cells), candidate.key, seed)
    results: list[Result] = []
    for target in tried:
        if sum(not result.dropped for result in results) == PER_TABLE:
            break
        key = f"{candidate.key}#{target}"
        try:
            entry = _one(raw, candidate, target, folder, sandbox, seed)
            results.append(Result(key, entry=entry))
        except TaskError as error:
            results.append(Result(key, _reason(error)))
    return results or [Result(candidate.key, "no column that could be a target")]


class DroppedError(TaskError):
    """A task fails a measurement. The message is the reason."""


def _reason(error: TaskError) -> str:
    """Return a short reason without host paths, alike for alike failures."""
    if isinstance(error, DroppedError):
        return str(error)
    if isinstance(error, tasks.NoHeadroomError):
        return "no headroom beyond noise on both halves"
    if isinstance(error, RefusalError):
        return f"refused: {str(error)[:160]}"
    if "CPU" in str(error) or "time" in str(error):
        return "a script exceeds its limits"
    return (
        f"failed: {str(error).splitlines()[0][:160]}"
        if "split" in str(error) or "lack" in str(error)
        else "a script fails"
    )


def _one(raw: RawTable, candidate: Candidate, target: str, folder: Path, sandbox: Sandbox, seed: int) -> dict[str, Any]:
    """Write and measure one task; its folder remains if it is kept."""
    plan = choose(raw, Wishes(target))
    short = hashlib.sha256(f"{candidate.key}#{target}".encode()).hexdigest()[:6]
    stem = task_name("-".join(candidate.key.partition("/")[2].split("/")).removesuffix(".csv"))[:32]
    name = task_name(f"{stem}-{target[:18]}-{short}")
    origin = Origin(f"Table {candidate.key}.", candidate.about, candidate.license)
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    kept = False
    try:
        written = write(plan, place, name, origin, seed, LIMIT)
        if not written.chosen.agrees:
            raise DroppedError("no headroom in cross-validation")
        entry = _measured(f"{place}/", sandbox, seed)
        kept = True
    finally:
        if not kept:
            shutil.rmtree(place, ignore_errors=True)
    return entry | {
        "table": candidate.key,
        "target": plan.target,
        "classes": len(plan.classes),
        "columns": len(plan.roles),
        "roles": {role: int(count) for role, count in pd.Series(list(plan.roles.values())).value_counts().items()},
        "split": plan.split,
        "license": candidate.license,
        "about": candidate.about[:200],
        "attention": list(plan.attention)[:10],
    }


def _existing(candidate: Candidate, sandbox: Sandbox, seed: int) -> dict[str, Any]:
    """Return the index entry of a candidate that is a task already."""
    named = {"table": candidate.key, "target": "y0", "split": "", "license": candidate.license, "place": candidate.task}
    return _measured(candidate.task, sandbox, seed) | named


def _measured(place: str, sandbox: Sandbox, seed: int) -> dict[str, Any]:
    """Prepare a task, search it for leaks and shortcuts, and return its index entry.

    Raises:
      TaskError: it fails.
    """
    with tempfile.TemporaryDirectory(prefix="mlagent-suite-") as temporary:
        task = tasks.prepare(place, Path(temporary), seed, sandbox, warn=False)
        with contextlib.closing(task):
            examination = examine(task)
            if examination.leaks:
                raise DroppedError("labels follow from public files")
            if examination.shortcuts:
                raise DroppedError("a guess without learning beats the reference")
            reference = (task.folder / "private" / "reference.py").read_text(encoding="utf-8")
            run = run_script(reference, task.folder, task.spec, sandbox)
            if run.execution.cpu_seconds > _SLOW * LIMIT:
                raise DroppedError("an execution takes too long")
            target = np.loadtxt(task.public / "target.csv", delimiter=",", skiprows=1, ndmin=2)[:, 0]
            tables = [path for path in (task.public / "train.csv", task.public / "train.txt") if path.exists()]
            scale, report, spec = task.scale, task.report_scale, task.spec
            return {
                "name": spec.name,
                "kind": spec.kind,
                "metric": spec.metric,
                "traits": spec.traits,
                "rows": len(target) + task.grader.rows,
                "columns": len(tables[0].read_text(encoding="utf-8").partition("\n")[0].split(",")),
                "hidden": task.grader.rows,
                "m_init": scale.m_init,
                "m_best": scale.m_best,
                "report_m_init": report.m_init,
                "report_m_best": report.m_best,
                "noise": scale.noise,
                "headroom": scale.gap / max(abs(scale.m_init), 1e-12),
                "cpu_seconds": round(run.execution.cpu_seconds, 3),
                "picture": np.histogram(target, bins=min(16, max(2, len(set(target.tolist())))))[0].tolist(),
            }
