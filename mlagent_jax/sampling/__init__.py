"""Sampling from the policy: prompts in, completions with their behaviour log-probs out.

`Sampler` takes texts and holds a model (`load`). `TokenSampler` takes token ids, and weights with each call: those of a
trainer. Below both, a `Batch` of slots takes `Request`s at any time; the server feeds one.
"""

from mlagent_jax.sampling.batch import Batch
from mlagent_jax.sampling.checkpoint import Model, load
from mlagent_jax.sampling.config import Completion, Distribution, Progress, Request, SamplerConfig, SamplingError
from mlagent_jax.sampling.sampler import Delta, Generation, Sampler
from mlagent_jax.sampling.token_sampler import TokenSampler
from mlagent_jax.sampling.weights import Weights

__all__ = [
    "Batch",
    "Completion",
    "Delta",
    "Distribution",
    "Generation",
    "Model",
    "Progress",
    "Request",
    "Sampler",
    "SamplerConfig",
    "SamplingError",
    "TokenSampler",
    "Weights",
    "load",
]
