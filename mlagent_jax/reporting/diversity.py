"""Diversity of the edits that a policy samples from the fixed states of its evaluation.

    distinct edits a state     distinct edits among the actions sampled from one state, as a fraction of them
    entropy over edit kinds    in nats, of the kinds of edits sampled in all states of one task

Two edits are equal if they change the script equally, whatever the rest of the reply says. The kind of an edit is its
place (the cell or file) and the classes that its new lines call. A reply without an edit that applies adds to neither
measure.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from etils import epath

from environments.protocol import OutcomeKind
from mlagent_jax.runtime import jsonl

MEASURES = {"distinct_edits": "distinct edits a state, share", "kind_entropy": "entropy over edit kinds, nats"}

_CALLED = re.compile(r"\b([A-Z]\w*)\(")


def called(text: str) -> set[str]:
    """Return the names of the classes that a text calls."""
    return set(_CALLED.findall(text))


def edit_kind(outcome: Mapping[str, Any]) -> tuple[str, ...]:
    """Return (changed cell or file, classes called by the new lines in alphabetical order)."""
    arguments = outcome.get("action_input") or {}
    place = arguments.get("cell") or arguments.get("script_name") or outcome.get("action_name") or ""
    added = (line for line in outcome["diff"].splitlines() if line.startswith("+") and not line.startswith("+++"))
    return (str(place), *sorted(called("\n".join(added))))


def entropy(counts: Iterable[int]) -> float:
    """Return the entropy of a distribution given by counts, in nats; 0 without counts."""
    counts = [count for count in counts if count]
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts)


def measures(path: epath.PathLike, split: str) -> dict[str, dict[Hashable, float]]:
    """Return `distinct_edits` by state and `kind_entropy` by task, of the evaluation records in a file.

    States and tasks whose actions all met infrastructure errors are excluded.
    """
    edits: dict[tuple[str, str], list[str | None]] = {}
    kinds: dict[str, collections.Counter] = {}
    for record in jsonl.iterate(path):
        outcome = record.get("outcome")
        if record["kind"] != "step" or record["split"] != split:
            continue
        if outcome["kind"] == OutcomeKind.INFRASTRUCTURE_ERROR:
            continue
        sampled = edits.setdefault((record["task"], record["state"]), [])
        of_task = kinds.setdefault(record["task"], collections.Counter())
        sampled.append(outcome["diff"] or None)
        if outcome["diff"]:
            of_task[edit_kind(outcome)] += 1
    return {
        "distinct_edits": {state: len(set(diffs) - {None}) / len(diffs) for state, diffs in edits.items()},
        "kind_entropy": {task: entropy(counted.values()) for task, counted in kinds.items()},
    }
