"""Settings of the optimizer's state. This module imports no JAX: the config of a run has them as its section."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer state of each trained parameter, for sft and rl."""

    moments: str = "float32"
    """Format of the moments: float32; bfloat16 (first moment only, the second stays float32); or factored (Adafactor's
    row and column statistics of the second moment, no first moment)."""
    placement: str = "device"
    """Location of the moments between updates: device, or host (pinned memory). Host placement frees device memory and
    makes each update slower; the results are the same."""
    rounding: str = "nearest"
    """Rounding of updates to bfloat16 parameters: nearest, or stochastic, which keeps small updates. Use nearest for
    float32 parameters (policy.param_dtype), which are master weights."""
