"""The coefficient of the KL penalty over a run: fixed, or steered towards a target.

A controller is a frozen value on the host; `update` gives the next one, once per iteration. It goes into a checkpoint
as JSON (`to_dict`) and comes back bit by bit (`from_dict`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class FixedKL:
    """The same coefficient throughout."""

    coefficient: float
    """beta: what a nat of KL a token costs, in units of reward or loss."""

    def __post_init__(self) -> None:
        _check_non_negative("coefficient", self.coefficient)

    def update(self, observed: float) -> FixedKL:
        del observed
        return self


@dataclasses.dataclass(frozen=True)
class AdaptiveKL:
    """Proportional control in log space (Ziegler et al. 2019, section 2.2):

        e    = clip((KL - target) / target, -max_error, max_error)
        beta = beta * (1 + gain * e)

    Too far from the reference and beta grows, too near and it shrinks, by at most gain * max_error a batch.
    """

    coefficient: float
    """beta, now. 0 would stay 0 for ever and is refused."""
    target: float
    """KL aimed at, in the unit that `update` is given."""
    gain: float = 0.1
    """K_beta in the paper."""
    max_error: float = 0.2

    def __post_init__(self) -> None:
        for name in ("coefficient", "target", "gain", "max_error"):
            _check_non_negative(name, getattr(self, name))
            if getattr(self, name) == 0:
                raise ValueError(f"{name} is 0: an adaptive KL coefficient needs a positive one, or use 'fixed'")

    def update(self, observed: float) -> AdaptiveKL:
        """The controller after a batch whose mean KL was `observed`.

        Raises:
          ValueError: `observed` is not finite; a coefficient made from it would poison every later step.
        """
        if not math.isfinite(observed):
            raise ValueError(f"observed KL is {observed}: stop the run and look at the batch")
        error = min(max((observed - self.target) / self.target, -self.max_error), self.max_error)
        return dataclasses.replace(self, coefficient=self.coefficient * (1.0 + self.gain * error))


KLController = FixedKL | AdaptiveKL
CONTROLLERS: dict[str, type[FixedKL] | type[AdaptiveKL]] = {"fixed": FixedKL, "adaptive": AdaptiveKL}


def _check_non_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}: give a finite number >= 0")


def to_dict(controller: KLController) -> dict[str, Any]:
    """JSON-serialisable; `from_dict` gives an equal controller."""
    names = {kind: name for name, kind in CONTROLLERS.items()}
    return {"kind": names[type(controller)], **dataclasses.asdict(controller)}


def from_dict(data: Mapping[str, Any]) -> KLController:
    """Also the way from a config: `{"kind": "adaptive", "coefficient": 0.1, "target": 0.02}`.

    Raises:
      ValueError: no such kind or field, or a value out of range.
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in CONTROLLERS:
        raise ValueError(f"KL controller kind is {kind!r}; choose one of {', '.join(CONTROLLERS)}")
    try:
        return CONTROLLERS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"KL controller {kind!r}: {error}") from error
