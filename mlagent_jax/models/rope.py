"""Rotary position embeddings: one cosine and sine table per forward pass, shared by all layers.

The formulas are those of transformers' `modeling_rope_utils` (default, linear, llama3, yarn), with the halves of a head
rotated against each other (the "rotate half" convention of Qwen and Llama checkpoints).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.models.config import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Return inverse frequencies [head_dim / 2] in radians per token, and the factor on cosine and sine (1 except for
    yarn)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    base = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return base / np.float32(scaling.factor), 1.0
    if scaling.kind == "llama3":
        return _llama3(base, scaling, config.max_position_embeddings), 1.0
    if scaling.kind == "yarn":
        return _yarn(base, config), _yarn_attention_factor(scaling)
    return base, 1.0


def _llama3(base: np.ndarray, scaling: RopeScaling, max_positions: int) -> np.ndarray:
    """Scale as Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    original = scaling.original_max_position_embeddings or max_positions
    wavelength = 2 * math.pi / base
    smooth = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * base / scaling.factor + smooth * base).astype(np.float32)


def _yarn(base: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Scale as YaRN (Peng et al. 2023, arXiv 2309.00071): a linear ramp over dimensions from extra- to
    interpolation."""
    scaling, dim = config.rope_scaling, config.head_dim
    original = scaling.original_max_position_embeddings or config.max_position_embeddings

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    interpolated = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (base / scaling.factor * interpolated + base * (1 - interpolated)).astype(np.float32)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def table(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return cosine and sine, fp32 [..., 1, head_dim / 2], of integer positions [...]; the 1 is broadcast over
    heads."""
    inverse, factor = frequencies(config)
    angles = positions.astype(jnp.float32)[..., None, None] * inverse
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate `x` [..., heads, head_dim] by its position; computed in fp32, returned in the dtype of `x`."""
    cos, sin = cos_sin
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return rotated.astype(x.dtype)
