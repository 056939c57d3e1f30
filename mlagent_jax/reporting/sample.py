"""Which trajectories of a run its page shows: a few hundred of any number, the same every time, even over tasks and
outcomes, and of a stage that still goes on the newest besides.

Of each (task, outcome) those with the smallest hash of their place in the file are kept (bottom-k sampling), in one
pass over files of any size; a `Sample` is fed as the file grows and never holds more than about twice what it shows.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Group = tuple[int, list[Record]]
"""Place in the file, and the records: one, or the steps of one of the expert's trajectories."""


class Sample:
    """A sample of the trajectories of one file.

    Args:
      expert: steps of one of the expert's trajectories are records of their own and belong together; elsewhere a record
        stands alone.
      limit: trajectories kept.
      newest: of them, those that are the newest of the file whatever they are.
    """

    def __init__(self, expert: bool, limit: int, newest: int = 0) -> None:
        self._expert, self._limit = expert, limit
        self._newest: collections.deque[Group] = collections.deque(maxlen=newest)
        self._strata: dict[Hashable, _BottomK] = {}
        self._count = 0

    @property
    def total(self) -> int:
        """Trajectories seen."""
        return sum(stratum.seen for stratum in self._strata.values())

    def add(self, records: Iterable[Record]) -> None:
        """The next records of the file."""
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
        """The sample, what matters most first: the newest, then the first of every stratum, then the second of each."""
        strata = [stratum.groups() for _, stratum in sorted(self._strata.items(), key=lambda item: str(item[0]))]
        turns = itertools.zip_longest(*strata)
        drawn = (group for turn in turns for group in turn if group is not None)
        # By place: what is among the newest is not drawn a second time.
        found = {number: (number, records) for number, records in itertools.chain(reversed(self._newest), drawn)}
        return list(itertools.islice(found.values(), self._limit))

    def _prune(self) -> None:
        """Forget what can no longer be shown: as more is seen, a stratum's share only becomes smaller."""
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
    """Of the keys seen, those with the smallest hashes, each with all its records."""

    def __init__(self) -> None:
        self._size: int | None = None
        self._kept: dict[Hashable, Group] = {}
        self._ranks: dict[Hashable, str] = {}
        self._seen: set[Hashable] = set()

    @property
    def seen(self) -> int:
        """How many keys there were."""
        return len(self._seen)

    def add(self, key: Hashable, number: int, record: Record) -> None:
        new = key not in self._seen
        self._seen.add(key)
        if new:
            self._ranks[key] = hashlib.sha256(repr(key).encode()).hexdigest()
            self._kept[key] = (number, [])
        if key in self._kept:  # One that was put out has a larger rank than all that stay: so do its later records.
            self._kept[key][1].append(record)
        if self._size is not None:
            self.keep(self._size)

    def keep(self, size: int) -> None:
        """From here on `size` keys at most; it never grows again."""
        self._size = size if self._size is None else min(self._size, size)
        while len(self._kept) > self._size:
            last = max(self._ranks, key=self._ranks.__getitem__)
            del self._kept[last], self._ranks[last]

    def groups(self) -> Sequence[Group]:
        """By rank."""
        return [self._kept[key] for key in sorted(self._kept, key=self._ranks.__getitem__)]
