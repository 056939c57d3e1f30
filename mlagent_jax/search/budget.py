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
    """Limits of a search, restarts included; infinite: no limit."""

    seconds: float = math.inf
    executions: float = math.inf
    tokens: float = math.inf
    """Prompt and completion tokens of the agent."""
    money: float = math.inf
    """In the currency of the endpoint's prices."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Raises:
          ConfigError: It is no budget, names a limit twice, or has no limit.
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
        """Return which limit is reached, with steps in work counted as executions; an empty string if none is."""
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
        """Return what is used, of how much."""
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
