"""How varied the edits are that a policy samples, from the fixed states of its evaluation.

    distinct edits a state     different edits among the actions sampled from one state, as a share of them
    entropy over edit kinds    in nats, of the kinds of edits sampled in all states of one task

Two edits are the same where they change the script in the same way, whatever the reply says around it. The kind of an
edit is what it changes (the cell, or the file) and which classes the new lines call. A reply that edits nothing, or
does not apply, is no edit: it adds to neither.
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


def edit_kind(outcome: Mapping[str, Any]) -> tuple[str, ...]:
    """(what was changed, classes called by the new lines in alphabetical order)."""
    arguments = outcome.get("action_input") or {}
    place = arguments.get("cell") or arguments.get("script_name") or outcome.get("action_name") or ""
    added = (line for line in outcome["diff"].splitlines() if line.startswith("+") and not line.startswith("+++"))
    return (str(place), *sorted({name for line in added for name in _CALLED.findall(line)}))


def entropy(counts: Iterable[int]) -> float:
    """Of a distribution given by counts, in nats; 0 where nothing was counted."""
    counts = [count for count in counts if count]
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts)


def measures(path: epath.PathLike, split: str) -> dict[str, dict[Hashable, float]]:
    """`distinct_edits` by state and `kind_entropy` by task, of the evaluation records in a file.

    States and tasks without a single action that our side could execute are left out.
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
        "distinct_edits": {state: len(set(found) - {None}) / len(found) for state, found in edits.items()},
        "kind_entropy": {task: entropy(counted.values()) for task, counted in kinds.items()},
    }
