"""Workers and queue of a run for its page, as reported by `environments.queue.inspection`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

PATIENCE_SECONDS = 2.0
"""Time-out of a queue that does not answer: the page has more to show."""


def fleet(workdir: epath.PathLike, config: Mapping[str, Any], name: str | None) -> dict[str, Any] | None:
    """Return the status of the queue of the run called `name`, or `{"error": why}`; None if it has no queue (yet).

    Args:
      config: Config of the run, as in its `config.json`.
    """
    url = config.get("workers", {}).get("queue")
    if not url:
        path = os.path.join(os.fspath(workdir), "queue.db")
        if not os.path.exists(path):
            return None
        url = f"sqlite:///{os.path.abspath(path)}"
    # The report of a run without a queue needs no SQLAlchemy.
    from environments.queue import QueueError, open_queue
    from environments.queue.engine import parse_url

    try:
        parsed = parse_url(url)
        if parsed.get_backend_name() == "sqlite" and not os.path.exists(parsed.database or ""):
            return {"error": f"the queue {parsed.database} is not there any more"}
        queue = open_queue(url, create=False, patience_seconds=PATIENCE_SECONDS)
        try:
            return {"run": name, **queue.status()}
        finally:
            queue.close()
    except (QueueError, OSError, ImportError) as error:
        return {"error": str(error)}
