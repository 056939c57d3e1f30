"""Floating-point operations of a program, counted where it is still whole: in its jaxpr.

A compiled program's own cost analysis counts the body of a loop once and no custom kernel; here a scan counts as often
as it runs. Only products count (2 a multiply-add), with what rematerialisation repeats; all else is little beside them.
"""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Of all devices together."""
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            total += _product(equation)
            continue
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(count(inner) for inner in _inner(equation.params))
    return total


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _inner(params: dict[str, Any]) -> list[Any]:
    """Jaxprs among an equation's parameters; all branches of a conditional: too much is counted, never too little."""
    values = [item for value in params.values() for item in (value if isinstance(value, (tuple, list)) else (value,))]
    return [value for value in values if isinstance(value, (ClosedJaxpr, Jaxpr))]
