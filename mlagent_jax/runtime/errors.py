"""Errors whose message tells the user what to do; the command line prints them without a traceback."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or impossible; the message names it and the remedy."""


class DivergedError(RuntimeError):
    """The update produced NaN or moved too far from the SFT policy, or sampler and trainer disagree."""


class BudgetError(RuntimeError):
    """Another request to a language model might exceed the budget; the message says what was spent."""


class PeerError(RuntimeError):
    """Another process of a multi-host run failed; the message has its number and its error."""
