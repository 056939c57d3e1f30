"""Sample of a run's trajectories for its page: a few hundred of any number, deterministic, balanced over tasks and
outcomes, plus the newest ones of a running stage.

Of each (task, outcome) those with the smallest hash of their place in the file are kept (bottom-k sampling), in one
pass over files of any size. A `Sample` holds at most about twice what it shows.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Group = tuple[int, list[Record]]
"""Place in the file, and the records: one, or the steps of one expert trajectory."""


class Sample:
    """Sample of the trajectories of one file.

    Args:
      expert: Whether records are steps of expert trajectories, which are grouped; otherwise each record stands alone.
      limit: Number of trajectories kept.
      newest: Number of these reserved for the newest of the file.
    """

    def __init__(self, expert: bool, limit: int, newest: int = 0) -> None:
        self._expert, self._limit = expert, limit
        self._newest: collections.deque[Group] = collections.deque(maxlen=newest)
        self._strata: dict[Hashable, _BottomK] = {}
        self._count = 0

    @property
    def total(self) -> int:
        """Return the number of trajectories seen."""
        return sum(stratum.seen for stratum in self._strata.values())

    def add(self, records: Iterable[Record]) -> None:
        """Add the next records of the file."""
        for record in records:
            number, self._count = self._count, self._count + 1
            whole = self._expert and "trajectory" in record
            key = (record["task"], record.get("split"), record["trajectory"]) if whole else number
            kind = None if whole or record.get("kind") == "episode" else record["outcome"]["kind"]
            stratum = self._strata.setdefault((record["task"], kind), _BottomK())
            stratum.add(key, number, record)
            if not whole:
                self._newest.append((number, [record]))
            if self._count % (2 * self._limit) == 0:
                self._prune()

    def groups(self) -> list[Group]:
        """Return the sample by priority: the newest, then the first of every stratum, then the second of each."""
        strata = [stratum.groups() for _, stratum in sorted(self._strata.items(), key=lambda item: str(item[0]))]
        rounds = itertools.zip_longest(*strata)
        drawn = (group for round_ in rounds for group in round_ if group is not None)
        # By place, so that the newest are not included twice.
        groups = {number: (number, records) for number, records in itertools.chain(reversed(self._newest), drawn)}
        return list(itertools.islice(groups.values(), self._limit))

    def _prune(self) -> None:
        """Drop groups that can no longer be shown: a stratum's share only shrinks as more is seen."""
        sizes = sorted(stratum.seen for stratum in self._strata.values())
        left, level = self._limit, 0
        for index, size in enumerate(sizes):
            level = left // (len(sizes) - index)
            if size > level:
                break
            left -= size
            level = size
        for stratum in self._strata.values():
            stratum.keep(level + 1 + len(self._newest))


class _BottomK:
    """Keys with the smallest hashes of those seen, each with all its records."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._kept: dict[Hashable, Group] = {}
        self._ranks: dict[Hashable, str] = {}
        self._seen: set[Hashable] = set()

    @property
    def seen(self) -> int:
        """Return the number of keys seen."""
        return len(self._seen)

    def add(self, key: Hashable, number: int, record: Record) -> None:
        new = key not in self._seen
        self._seen.add(key)
        if new:
            self._ranks[key] = hashlib.sha256(repr(key).encode()).hexdigest()
            self._kept[key] = (number, [])
        if key in self._kept:  # A dropped key ranks above all kept ones, and so do its later records.
            self._kept[key][1].append(record)
        if self._size is not None:
            self.keep(self._size)

    def keep(self, size: int) -> None:
        """Keep at most `size` keys from now on; the limit never grows again."""
        self._size = size if self._size is None else min(self._size, size)
        while len(self._kept) > self._size:
            last = max(self._ranks, key=self._ranks.__getitem__)
            del self._kept[last], self._ranks[last]

    def groups(self) -> Sequence[Group]:
        """Return the groups by rank."""
        return [self._kept[key] for key in sorted(self._kept, key=self._ranks.__getitem__)]
