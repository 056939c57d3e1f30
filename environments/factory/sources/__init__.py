"""Sources of tables for suites, by name: each lists candidates and reads one as texts.

An installed package adds a source with an entry point of the group `mlagent_jax.task_sources`: a function without
arguments that returns a `Source`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from environments.factory.reading import RawTable
from environments.registry import Registry


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A table that a source offers."""

    key: str
    """Name of the table in its source: `package/table`."""
    about: str = ""
    """Title of the table."""
    license: str = ""
    """License with its origin; empty if it cannot be told, which drops the candidate."""
    targets: tuple[str, ...] = ()
    """Columns that the source names as targets; empty: chosen."""


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
          RefusalError: it cannot be read.
        """


SOURCES: Registry[Callable[[], Source]] = Registry("source", group="mlagent_jax.task_sources")
"""Sources by name."""


def _register() -> None:
    from environments.factory.sources.packages import PackageSource

    SOURCES.register("packages")(PackageSource)


_register()
