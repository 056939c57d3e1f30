"""Selection of the recorded steps to imitate, by the settings of `config.filter`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from environments.protocol import Outcome, OutcomeKind, digest
from mlagent_jax.settings.stages import FilterConfig
from mlagent_jax.trajectories.record import Record


def gain(outcome: Outcome) -> float | None:
    """Return a step's improvement of the metric as a fraction of the task's gap, positive is better; None without a
    score."""
    if outcome.kind is not OutcomeKind.SCORED or outcome.delta is None or not outcome.scale.gap:
        return None
    return outcome.delta / outcome.scale.gap


def imitated(records: Iterable[Record], config: FilterConfig) -> Iterator[Record]:
    """Yield the `records` that sft learns from, in order: steps of training tasks that are not deliberate errors and
    pass every filter."""
    seen: set[str] = set()
    for record in records:
        improved = gain(record.outcome)
        if record.split != "train" or not record.target or record.outcome.kind not in config.outcomes:
            continue
        if improved is not None and improved < config.min_gain:
            continue
        if config.max_characters and len(record.prompt) + len(record.action) > config.max_characters:
            continue
        if not config.duplicates:
            state = dataclasses.replace(record.state, ideas=())
            key = digest([state.id, record.action])
            if key in seen:
                continue
            seen.add(key)
        yield record
