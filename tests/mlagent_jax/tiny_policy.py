"""The shape of a policy of a few thousand random parameters, for whole updates in fp32."""

from mlagent_jax import models

SHAPE = models.ModelConfig(32, 16, 2, 2, 1, 8, 32, attention_bias=True, tie_word_embeddings=True)
