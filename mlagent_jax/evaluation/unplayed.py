"""Planned parts of an evaluation that could not be asked or played: counted with their reason, in no figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence

from etils import epath

from mlagent_jax.runtime.files import read_json, write_whole


@dataclasses.dataclass(frozen=True)
class Unplayed:
    """Planned part of an evaluation that could not be asked or played; it counts in no figure."""

    what: str
    """`states`, `episodes`, or `ends of episodes` that are counted with the steps they have."""
    split: str
    count: int
    reason: str
    task: str = ""
    """Task; empty: several."""


def write_unplayed(path: epath.PathLike, unplayed: Sequence[Unplayed]) -> None:
    """Write what is missing in the evaluation records at `path` beside them; nothing if nothing is missing."""
    if unplayed:
        write_whole(_unplayed_path(path), json.dumps({"unplayed": list(map(dataclasses.asdict, unplayed))}, indent=1))


def read_unplayed(path: epath.PathLike) -> tuple[Unplayed, ...]:
    """Return what is missing in the evaluation records at `path`."""
    beside = _unplayed_path(path)
    return tuple(Unplayed(**each) for each in read_json(beside)["unplayed"]) if beside.exists() else ()


def _unplayed_path(path: epath.PathLike) -> epath.Path:
    return epath.Path(path).with_suffix(".unplayed.json")


def told(unplayed: Iterable[Unplayed]) -> list[str]:
    """Return a sentence for each kind of thing that was not asked or played, with its count and its last reason."""
    kinds: dict[tuple[str, str], tuple[int, str]] = {}
    for each in unplayed:
        key = (each.what, each.split.replace("_", "-"))
        kinds[key] = (kinds.get(key, (0, ""))[0] + each.count, each.reason)
    return [f"{count} {split} {what} not played: {reason}" for (what, split), (count, reason) in kinds.items()]
