"""Tasks that are generated: any number of tables, images, texts, series and graphs, in the manner of a source.

Their data are drawn, not read, so a candidate names a task that exists, and the suite refers to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from environments.factory.reading import RawTable, RefusalError
from environments.factory.sources.base import Candidate
from environments.tasks.generated import micro

_EACH = 100
"""Number of candidates of a family."""


class GeneratedSource:
    """Families of micro-tasks that training may use, with seeds beyond those that `tasks.micro_train` takes."""

    def candidates(self) -> Sequence[Candidate]:
        names = (
            f"{micro.PREFIX}{family}-{10**8 + place}"
            for family in micro.family_names("train")
            for place in range(_EACH)
        )
        return [Candidate(f"generated/{name}", license="Apache-2.0 (of this project)", task=name) for name in names]

    def read(self, candidate: Candidate) -> RawTable:
        """Refuse: there is no table."""
        raise RefusalError(f"{candidate.key} is a task, not a table")
