"""Precision of matrix products, and by how much two programs may differ on the same weights.

TPUs and recent GPUs round the inputs of float32 products unless they are told not to: to bfloat16 (8 bits) and to
TensorFloat-32 (11 bits). A policy that is computed in float32 gets float32 there too, unless the config says otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from mlagent_jax.settings.policy import PolicyConfig

AUTO = "auto"
_ROUNDED = {"bfloat16": "bfloat16", "tensorfloat32": "tensorfloat32", "high": "three_passes"}
_OF_DEFAULT = {"tpu": "bfloat16", "gpu": "tensorfloat32"}
"""Inputs of float32 products as the platform takes them by itself; a CPU keeps float32."""

TOLERANCES = {"float32": 1e-4, "float32 on an accelerator": 1e-3, "three_passes": 2e-3, "tensorfloat32": 0.0125}
"""Mean difference of log-probs in nats a token. On a CPU, float32 differs by rounding of sums alone. An accelerator's
exponentials and sums in another order differ more. TensorFloat-32 has an eighth of bfloat16's rounding error and gets a
quarter of its tolerance."""
BFLOAT16_TOLERANCE = 0.05


def jax_precision(precision: str, compute_dtype: str, platform: str) -> str | None:
    """Return the value for `jax_default_matmul_precision`, or None for the platform's own.

    Args:
      precision: `policy.matmul_precision`.
      compute_dtype: `policy.compute_dtype`.
      platform: JAX's name: cpu, gpu or tpu.
    """
    if precision == AUTO:
        return "highest" if compute_dtype == "float32" and platform in _OF_DEFAULT else None
    return None if precision == "default" else precision


def tolerance(precision: str, compute_dtype: str, platform: str) -> float:
    """Return the mean nats a token by which sampler and trainer may differ on the same weights; arguments as
    `jax_precision`."""
    if compute_dtype == "bfloat16":
        return BFLOAT16_TOLERANCE
    if platform not in _OF_DEFAULT:
        return TOLERANCES["float32"]
    named = jax_precision(precision, compute_dtype, platform)
    rounded = _OF_DEFAULT[platform] if named is None else _ROUNDED.get(named)
    if rounded == "bfloat16":
        return BFLOAT16_TOLERANCE
    return TOLERANCES[rounded or "float32 on an accelerator"]


@contextlib.contextmanager
def in_effect(policy: PolicyConfig) -> Iterator[None]:
    """Set the precision of a config for all threads; `jax.default_matmul_precision` would set it for one."""
    before = jax.config.jax_default_matmul_precision
    wanted = jax_precision(policy.matmul_precision, policy.compute_dtype, jax.default_backend())
    jax.config.update("jax_default_matmul_precision", wanted or before)
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)
