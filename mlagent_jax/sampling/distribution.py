"""Sampling distributions and draws: pure functions of logits, settings and keys, row by row."""

from __future__ import annotations

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from mlagent_jax.sampling.config import Distribution


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distributions:
    """One `Distribution` per row, on the device: each field is [rows]."""

    temperature: jax.Array
    """fp32"""
    top_k: jax.Array
    """int32"""
    top_p: jax.Array
    """fp32"""
    min_p: jax.Array
    """fp32"""

    @classmethod
    def same(cls, distribution: Distribution, rows: int) -> Self:
        """Return the same distribution for every row."""

        def column(value: float, dtype: type) -> jax.Array:
            return jnp.full((rows,), value, dtype)  # A strong type: a weak one would compile programs again.

        return cls(
            temperature=column(distribution.temperature, jnp.float32),
            top_k=column(distribution.top_k, jnp.int32),
            top_p=column(distribution.top_p, jnp.float32),
            min_p=column(distribution.min_p, jnp.float32),
        )


def log_distribution(settings: Distribution | Distributions, logits: jax.Array) -> jax.Array:
    """Compute the log-probabilities after temperature, top-k, top-p and min-p, in this order; -inf for removed tokens.

    The order is that of transformers' logits processors. Ties with the last kept token are kept too, and the most
    probable token is always kept. At temperature 0 this is the distribution at temperature 1. A row that removes
    nothing has the same bits whatever the others do. If no row removes any token, nothing is sorted.

    Args:
        settings: One distribution for all rows (compiled in), or one per row.
        logits: fp32 [rows, vocab]. A row with a NaN or +inf, or of -inf alone, has no distribution.

    Returns:
        fp32 [rows, vocab], normalised; NaN in all entries of a row without a distribution.
    """
    if isinstance(settings, Distribution):
        rows = Distributions.same(settings, len(logits))
        whole = _normalised(rows, logits)
        cuts = settings.temperature > 0 and (settings.top_k > 0 or settings.top_p < 1 or settings.min_p > 0)
        return _cut(rows, logits, whole) if cuts else whole
    whole = _normalised(settings, logits)
    cuts = (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0)
    cuts &= settings.temperature > 0
    return jax.lax.cond(
        jnp.any(cuts), lambda: jnp.where(cuts[:, None], _cut(settings, logits, whole), whole), lambda: whole
    )


def _divisor(settings: Distributions) -> jax.Array:
    """fp32 [rows, 1]"""
    return jnp.where(settings.temperature > 0, settings.temperature, 1.0)[:, None]


def _normalised(settings: Distributions, logits: jax.Array) -> jax.Array:
    # Subtract the largest logit before the division: a small temperature would make it infinite.
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    return jax.nn.log_softmax(below / _divisor(settings), axis=-1)


def _cut(settings: Distributions, logits: jax.Array, whole: jax.Array) -> jax.Array:
    """Restrict `whole`, the distribution of `logits`, to the kept tokens.

    Each cut becomes the least kept logit. The comparison is between the logits themselves, in the order of the
    vocabulary and sorted, whose bits are the same. Values that are computed twice (a normalised row) may differ by an
    ulp, so that a token falls below its own threshold.
    """
    logits = jax.lax.optimization_barrier(logits)
    vocab = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    largest = ordered[:, :1]
    last = jnp.where((settings.top_k > 0) & (settings.top_k < vocab), settings.top_k, vocab)[:, None] - 1
    least = jnp.take_along_axis(ordered, last, axis=-1)

    divisor = _divisor(settings)
    weights = jnp.where(ordered >= least, jnp.exp((ordered - largest) / divisor), 0.0)
    reached = jnp.cumsum(weights, axis=-1)
    before = jnp.pad(reached, ((0, 0), (1, 0)))[:, :-1]
    top_p = settings.top_p[:, None]
    # The first token is kept however small top_p is; the others depend on the probability before them.
    inside = (before < top_p * reached[:, -1:]).at[:, 0].set(True)
    nucleus = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    least = jnp.maximum(least, jnp.where(top_p < 1, nucleus, -jnp.inf))

    least = jnp.maximum(least, largest + divisor * jnp.log(settings.min_p[:, None]))
    return jax.nn.log_softmax(jnp.where(logits >= least, whole, -jnp.inf), axis=-1)


def request_keys(low: jax.Array, high: jax.Array, sample: jax.Array) -> jax.Array:
    """Return a key for each request, from its 64-bit seed (two uint32 halves) and its sample index; all [requests]."""
    return jax.vmap(lambda a, b, c: jax.random.fold_in(jax.random.fold_in(jax.random.key(a), b), c))(low, high, sample)


def draw(
    settings: Distribution | Distributions, logits: jax.Array, keys: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw one token per row. Its randomness depends only on the row's key and position, not on other rows.

    Args:
        settings: One distribution for all rows (compiled in), or one per row.
        logits: fp32 [rows, vocab].
        keys: Typed keys [rows] from `request_keys`.
        positions: int32 [rows], positions of the new tokens.

    Returns:
        (tokens int32 [rows], their log-probabilities fp32 [rows])
    """
    log_probs = log_distribution(settings, logits)

    def drawn() -> jax.Array:
        return jax.vmap(jax.random.categorical)(jax.vmap(jax.random.fold_in)(keys, positions), log_probs)

    def likeliest() -> jax.Array:
        return jnp.argmax(logits, axis=-1)

    if isinstance(settings, Distribution):
        tokens = drawn() if settings.temperature > 0 else likeliest()
    else:
        random = settings.temperature > 0  # A batch that is entirely greedy makes no random bits.
        tokens = jnp.where(random, jax.lax.cond(jnp.any(random), drawn, likeliest), likeliest())
    return tokens.astype(jnp.int32), jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
