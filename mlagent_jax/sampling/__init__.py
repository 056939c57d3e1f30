"""Sampling from the policy: prompts in, completions with their behaviour log-probs out."""

from mlagent_jax.sampling.config import Completion, SamplerConfig
from mlagent_jax.sampling.sampler import Sampler

__all__ = ["Completion", "Sampler", "SamplerConfig"]
