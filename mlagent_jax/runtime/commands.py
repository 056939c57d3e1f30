"""Shared parts of the commands that train: errors without a traceback, and plain lines in the log."""

from __future__ import annotations

import logging

from mlagent_jax.runtime.endings import EXPECTED

EXPECTED_ERRORS = tuple(EXPECTED)
"""Errors whose message tells the user what to do: shown without a traceback."""

log = logging.getLogger("mlagent_jax")


def log_plainly() -> None:
    """Log our own lines without absl's prefix, and only warnings of the libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)  # for the log in the workdir
    log.propagate = False
    logging.getLogger().setLevel(logging.WARNING)
