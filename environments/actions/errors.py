"""What is wrong with an action: always the policy's doing, always an `invalid_action`."""

from __future__ import annotations


class ActionError(ValueError):
    """The action does not parse or does not apply; the message is for the agent.

    `reason` is one line; `message` is MLAgentBench's full text (usage and all) where it has one.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.message = message if message is not None else f"EnvError: {reason}"
