"""What a sampler does, and what it returns."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

_BUCKETS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Static: each distinct value is a program of its own, so nothing about a single request belongs here."""

    max_new_tokens: int
    """Tokens of the longest completion, and the room in the cache kept for it; a call may ask for fewer."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token (and returns its log-probability at temperature 1)."""
    top_k: int = 0
    """Only the k most probable tokens (and what ties with the last); 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability; 1: all."""
    min_p: float = 0.0
    """Only tokens at least this times as probable as the most probable one; 0: all."""
    stop_token_ids: tuple[int, ...] = ()
    """A completion ends with the first of them, which is part of it."""
    pad_id: int = 0
    """Any id of the vocabulary; fills prompts up to their bucket and is never seen."""
    slots: int = 32
    """Sequences decoded at once: memory and throughput grow with it."""
    buckets: tuple[int, ...] = _BUCKETS
    """Lengths in tokens that prompts are padded to; one compilation of the prefill each, made when first needed."""
    prefill_rows: int = 4
    """Prompts of one bucket that are prefilled together (or one, when only one waits)."""
    steps_per_call: int = 16
    """Tokens decoded between two looks of the host; a free slot that someone waits for ends the call earlier."""
    compute_dtype: str | None = None
    """Of activations and cache, float32 or bfloat16; None: that of the parameters."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "slots", "prefill_rows", "steps_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampler {name}={getattr(self, name)} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"sampler temperature={self.temperature} must be 0 (greedy) or above")
        if self.top_k < 0:
            raise ValueError(f"sampler top_k={self.top_k} must be 0 (all) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampler top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"sampler min_p={self.min_p} must be between 0 and 1")
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise ValueError(f"sampler buckets={self.buckets} must be lengths of at least 1 in ascending order")

    def bucket(self, length: int) -> int:
        """The smallest bucket that holds a prompt of `length` tokens.

        Raises:
            ValueError: Where none does.
        """
        for size in self.buckets:
            if length <= size:
                return size
        raise ValueError(
            f"a prompt of {length} tokens is longer than the largest bucket, {self.buckets[-1]}: "
            "shorten it or add a bucket to SamplerConfig.buckets"
        )


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled continuation of one prompt."""

    token_ids: list[int]
    """Without the prompt; the stop token, where there was one, is the last."""
    log_probs: np.ndarray
    """fp32 [len(token_ids)]: of each token under the distribution it was drawn from."""
    finish_reason: Literal["stop", "length"]
    """`stop`: a stop token; `length`: the limit of tokens."""
