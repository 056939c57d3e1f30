"""Operations that a model needs, from its shape: 2 a multiply-add of the products, all else is little beside them.

Operations that rematerialisation repeats are not among them, so that the utilisation of two settings can be compared.
"""

from __future__ import annotations

from mlagent_jax.models.config import ModelConfig

TRAINING, TRAINING_ADAPTERS = 3, 2
"""Passes that a training step needs: forward; gradients of activations; and, unless weights are frozen, of weights."""


def forward(model: ModelConfig, tokens: float, pairs: float, predicted: float) -> float:
    """Return the operations of one forward pass.

    Args:
      model: Shape of the decoder.
      tokens: Number of tokens, padding left out.
      pairs: Number of (token, attended token) pairs: n (n + 1) / 2 for a sequence of n tokens.
      predicted: Number of positions that meet the vocabulary.
    """
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    projections = model.hidden_size * (2 * heads + 2 * kv_heads + 3 * model.intermediate_size)
    layers = model.num_layers * (tokens * projections + 2 * heads * pairs)
    return 2.0 * (layers + predicted * model.hidden_size * model.vocab_size)
