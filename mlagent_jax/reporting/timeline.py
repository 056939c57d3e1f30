"""The newest iterations of rl as timelines for the page, and a sentence that says what bounds each.

Spans are the trainer's (`runtime.timeline`), executions the queue's: who held a job, and from when to when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.timeline import FILE

ITERATIONS = 3
BESIDE = "sampling ahead"
"""Span of the thread beside the loop; all others are the loop's own and do not overlap."""
BUSY = 0.7
"""Share of the waiting time in which slots execute, from which on there are too few of them."""
REMEDIES = {
    "sampling": "raise sampling.slots, or rl.max_staleness above 0, so that sampling goes on beside executions",
    "episodes": "raise sampling.slots, add workers, or lower rl.episode_steps: sampling and executions take turns",
    "update": "mfu in metrics.jsonl, and tools/qualify.py, tell how far from the devices' peak it is",
    "checkpoint": "raise rl.checkpoint_every",
    "weights": "tools/qualify.py tells what laying them out for the sampler takes",
    "validation": "raise validation.every, or lower validation.states",
    "other": "a trace tells what the host does there (profile.iterations)",
}

Interval = tuple[float, float]


def timelines(workdir: epath.PathLike, fleet: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the newest iterations, oldest first: `{"step", "seconds", "lanes": [[name, kind, [[from, to] ...]] ...],
    "bound"}`, times in seconds from the iteration's start. Empty without rl.

    Args:
      workdir: Workdir of the run.
      fleet: Status of its queue (`fleet.fleet`).
    """
    records = [record for record in jsonl.iterate(epath.Path(workdir) / FILE) if record["stage"] == "rl"][-ITERATIONS:]
    known = (fleet or {}).get("executions", {}).get((fleet or {}).get("run"), [])
    executions = [(each["worker"], each["started"], each["finished"]) for each in known]
    return [_iteration(record, executions) for record in records]


def _iteration(record: Mapping[str, Any], executions: Iterable[tuple[str, float, float]]) -> dict[str, Any]:
    begin = min(start for _, start, _ in record["spans"])
    end = max(stop for _, _, stop in record["spans"])

    def clip(start: float, stop: float) -> Interval:
        return round(max(start, begin) - begin, 3), round(min(stop, end) - begin, 3)

    spans: dict[str, list[Interval]] = {}
    for name, start, stop in record["spans"]:
        spans.setdefault(name, []).append(clip(start, stop))
    slots: list[tuple[str, list[Interval]]] = []
    for worker, start, stop in sorted(executions, key=lambda each: each[1]):
        if start < end and stop > begin:
            _place(slots, worker, clip(start, stop))
    slots.sort(key=lambda slot: slot[0])
    lanes = [[name, "span", found] for name, found in spans.items()]
    lanes += [[name, "execution", found] for name, found in slots]
    seconds = round(end - begin, 3)
    return {"step": record["step"], "seconds": seconds, "lanes": lanes, "bound": bound(seconds, spans, slots)}


def _place(slots: list[tuple[str, list[Interval]]], worker: str, interval: Interval) -> None:
    """Put an execution in the first slot of its worker that is free by then, or in a new one."""
    for name, taken in slots:
        if name == worker and taken[-1][1] <= interval[0]:
            taken.append(interval)
            return
    slots.append((worker, [interval]))


def bound(
    seconds: float, spans: Mapping[str, Sequence[Interval]], slots: Sequence[tuple[str, Sequence[Interval]]]
) -> str:
    """Return a sentence that says which part of an iteration takes most, and what would shorten it.

    Args:
      seconds: Duration of the iteration.
      spans: Intervals by name, within the iteration.
      slots: (worker, intervals of its executions) of each slot in which executions were seen.
    """
    parts = {name: sum(b - a for a, b in found) for name, found in spans.items() if name != BESIDE}
    parts["other"] = max(0.0, seconds - sum(parts.values()))
    name = max(parts, key=parts.__getitem__)
    share = f"{parts[name] / seconds:.0%} of the iteration" if seconds else "the iteration"
    if name != "waiting":
        return f"{name.capitalize()} takes {share}: {REMEDIES[name]}."
    inside = [max(0.0, min(b, d) - max(a, c)) for a, b in spans["waiting"] for _, runs in slots for c, d in runs]
    busy = sum(inside) / (parts[name] * len(slots)) if slots and parts[name] else 0.0
    if not slots:
        return f"Waiting for executions takes {share}: the queue does not tell of any."
    longest = max(d - c for _, runs in slots for c, d in runs)
    seen = f"Waiting for executions takes {share}, and {len(slots)} slots are busy {busy:.0%} of that time"
    if busy >= BUSY:
        return f"{seen}: more workers would shorten it."
    return (
        f"{seen}; the longest execution took {longest:.1f} s: shorter limits or rl.straggler_seconds would shorten it."
    )
