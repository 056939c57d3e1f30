"""A policy of a few thousand random parameters, for whole updates in fp32."""

import jax
import pytest

from mlagent_jax import models

SHAPE = models.ModelConfig(32, 16, 2, 2, 1, 8, 32, attention_bias=True, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def policy():
    """Graph and parameters, which are not to be donated."""
    return models.create(SHAPE, jax.random.key(0))
