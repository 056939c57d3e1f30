"""Interface of a source of tables: it lists candidates, and reads one as texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from environments.factory.reading import RawTable

UNLISTED = "told by the table"
"""License of a candidate whose table brings it: `RawTable.license`."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A table that a source offers."""

    key: str
    """Name of the table in its source: `package/table`."""
    about: str = ""
    """Title of the table."""
    license: str = ""
    """License with its origin; empty if it cannot be told, which drops the candidate; `UNLISTED` if `read` tells it."""
    targets: tuple[str, ...] = ()
    """Columns that the source names as targets; empty: chosen."""
    task: str = ""
    """Name of a task that the candidate is already; then it has no table."""


class Source(Protocol):
    """A source of tables."""

    def candidates(self) -> Sequence[Candidate]:
        """Return all candidates, in an order that does not change.

        Raises:
          TaskError: nothing is installed, or the network does not answer.
        """

    def read(self, candidate: Candidate) -> RawTable:
        """Read a candidate's table; executes nothing of it.

        Raises:
          TaskError: it cannot be read.
        """
