"""Errors whose message tells the user what to do; the entry shows them without a traceback."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or impossible; the message names it and the remedy."""


class DivergedError(RuntimeError):
    """The update gave NaN or left the SFT policy too far behind, or sampler and trainer disagree."""


class BudgetError(RuntimeError):
    """Another request to a language model might go over the budget; the message says what was spent."""


class PeerError(RuntimeError):
    """Another process of a run on several hosts failed; the message has its number and its error."""
