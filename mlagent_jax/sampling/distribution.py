"""The distribution a token is drawn from, and the draw: pure functions of logits and keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlagent_jax.sampling.config import SamplerConfig


def log_distribution(config: SamplerConfig, logits: jax.Array) -> jax.Array:
    """Log-probabilities, -inf where cut off: temperature, then top-k, top-p and min-p, each on what the last left over.

    The order is that of transformers' logits processors. At temperature 0 this is the distribution at temperature 1.

    Args:
        config: The cut-offs.
        logits: fp32 [..., vocab].

    Returns:
        fp32 [..., vocab], normalised.
    """
    kept = jax.nn.log_softmax(logits / (config.temperature or 1.0), axis=-1)
    if config.temperature == 0:
        return kept
    if 0 < config.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(kept, config.top_k)[0][..., -1:]
        kept = _keep(kept, kept >= smallest)
    if config.top_p < 1:
        ordered = jnp.sort(kept, axis=-1, descending=True)
        before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
        smallest = jnp.min(jnp.where(before < config.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        kept = _keep(kept, kept >= smallest)
    if config.min_p > 0:
        kept = _keep(kept, kept >= jnp.max(kept, axis=-1, keepdims=True) + jnp.log(config.min_p))
    return kept


def _keep(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(jnp.where(mask, log_probs, -jnp.inf), axis=-1)


def request_keys(low: jax.Array, high: jax.Array, sample: jax.Array) -> jax.Array:
    """A key for each request, of its 64-bit seed (two uint32 halves) and the number of its sample; all [requests]."""
    return jax.vmap(lambda a, b, c: jax.random.fold_in(jax.random.fold_in(jax.random.key(a), b), c))(low, high, sample)


def draw(
    config: SamplerConfig, logits: jax.Array, keys: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw a token a row, with randomness of the row's key and position alone: not of its neighbours or its place.

    Args:
        config: The distribution.
        logits: fp32 [rows, vocab].
        keys: Typed keys [rows], of `request_keys`.
        positions: int32 [rows], where the new tokens will stand.

    Returns:
        (tokens int32 [rows], their log-probabilities fp32 [rows])
    """
    log_probs = log_distribution(config, logits)
    if config.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1)
    else:
        tokens = jax.vmap(jax.random.categorical)(jax.vmap(jax.random.fold_in)(keys, positions), log_probs)
    return tokens.astype(jnp.int32), jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
