"""Budget of a search: `30m, 200 executions, 2M tokens, 5 USD` (or `$5`, which a shell may expand)."""

from __future__ import annotations

import dataclasses
import math
import re

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.progress import duration
from mlagent_jax.search.tree import Totals

_PART = re.compile(r"(?P<money>\$)?\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-zA-Z]*(?: tokens)?)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "minutes": 60, "minute": 60, "h": 3600, "hours": 3600, "hour": 3600}
_TOKENS = {"tokens": 1, "k tokens": 1e3, "M tokens": 1e6}
_FORM = 'write minutes, executions, tokens and money with commas between: "30m, 200 executions, 500k tokens, 5 USD"'


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of a search, restarts included; infinity means no limit."""

    seconds: float = math.inf
    """Seconds in which at least one step is in work."""
    executions: float = math.inf
    """Number of scripts that ran."""
    tokens: float = math.inf
    """Prompt and completion tokens of the agent."""
    money: float = math.inf
    """Cost of the agent, in the currency of the endpoint's prices."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse a budget such as `30m, 200 executions`.

        Raises:
          ConfigError: The text is not a budget, names a limit twice, or names none.
        """
        limits: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = _PART.fullmatch(part)
            name, factor = _limit_of(match["money"], match["unit"]) if match else ("", 0.0)
            if not name or name in limits or not (value := float(match["number"]) * factor):
                raise ConfigError(f"--budget has {part!r}: {_FORM}, each at most once and above 0")
            limits[name] = value
        if not limits:
            raise ConfigError(f"--budget is empty: {_FORM}")
        return cls(**limits)

    def spent(self, used: Totals) -> str:
        """Return a sentence about the reached limit; an empty string if none is reached.

        Each step in work counts as an execution.
        """
        for value, limit, said in (
            (used.executions + used.pending, self.executions, f"{self.executions:g} executions"),
            (used.seconds, self.seconds, duration(self.seconds) if self.seconds < math.inf else ""),
            (used.tokens, self.tokens, f"{self.tokens:g} tokens"),
            (used.cost, self.money, f"${self.money:g}"),
        ):
            if value >= limit:
                return f"the budget of {said} is spent"
        return ""

    def show(self, used: Totals) -> str:
        """Return a phrase with the used amounts and their limits."""
        parts = [_of(used.executions, self.executions, "executions")]
        seconds = duration(used.seconds)
        parts.append(seconds if self.seconds == math.inf else f"{seconds} of {duration(self.seconds)}")
        if used.tokens:
            parts.append(_of(used.tokens, self.tokens, "tokens"))
        if used.cost:
            parts.append(f"${used.cost:.2f}" + ("" if self.money == math.inf else f" of ${self.money:g}"))
        return ", ".join(parts)


def _limit_of(money: str | None, unit: str) -> tuple[str, float]:
    """Return the name of a limit and the factor of its unit; an empty name if there is none."""
    if money:
        return ("money", 1.0) if not unit else ("", 0.0)
    if unit == "USD":
        return "money", 1.0
    if unit in _SECONDS:
        return "seconds", _SECONDS[unit]
    if unit in _TOKENS:
        return "tokens", _TOKENS[unit]
    return ("executions", 1.0) if unit in ("executions", "execution") else ("", 0.0)


def _of(value: float, limit: float, unit: str) -> str:
    return f"{value:g} {unit}" if limit == math.inf else f"{value:g} of {limit:g} {unit}"
