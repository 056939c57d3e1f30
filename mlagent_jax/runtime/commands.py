"""What the commands that train have in common: errors without a traceback, and plain lines in the log."""

from __future__ import annotations

import logging

from environments.actions.openai_http import EndpointError
from environments.files.blobs import StoreError
from environments.queue.base import QueueError
from environments.sandbox.base import SandboxError
from environments.tasks.task import TaskError
from mlagent_jax.runtime.errors import BudgetError, ConfigError, DivergedError, PeerError

EXPECTED_ERRORS = (
    BudgetError,
    ConfigError,
    DivergedError,
    EndpointError,
    PeerError,
    QueueError,
    SandboxError,
    StoreError,
    TaskError,
)
"""Errors whose message tells the user what to do: shown without a traceback."""

log = logging.getLogger("mlagent_jax")


def log_plainly() -> None:
    """Log our own lines without absl's prefix, and only warnings of the libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger().setLevel(logging.WARNING)
