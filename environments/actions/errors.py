"""Errors of an action: always the policy's fault, always an `invalid_action`."""

from __future__ import annotations


class ActionError(ValueError):
    """The action does not parse or does not apply. The agent sees the message.

    `reason` is one line; `message` is MLAgentBench's full text (with usage) if it has one.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.message = message if message is not None else f"EnvError: {reason}"
