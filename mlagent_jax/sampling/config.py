"""What a sampler does, what it is asked for, and what it returns."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

FinishReason = Literal["stop", "length"]
MOST_TEMPERATURE = 1e30
"""Its reciprocal, which compilers multiply by, is still a normal 32-bit number."""
MOST_TOP_K = 2**31 - 1
"""Programs take `top_k` as int32."""

BUCKETS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

NOT_A_NUMBER = (
    "the model's output is NaN or infinite, so that no token can be drawn: its weights are damaged, or their dtype too "
    "narrow for them"
)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """What tokens are drawn from."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token (and returns its log-probability at temperature 1). A
    positive one below the smallest normal 32-bit number is 0."""
    top_k: int = 0
    """Only the k most probable tokens (and what ties with the last); 0: all. At most `MOST_TOP_K`."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability (and what ties with the last), at least one;
    1: all."""
    min_p: float = 0.0
    """Only tokens at least this times as probable as the most probable one; 0: all."""

    def __post_init__(self) -> None:
        if 0 < self.temperature < float(np.finfo(np.float32).tiny):  # devices flush such a number to 0
            object.__setattr__(self, "temperature", 0.0)
        # Written so that NaN is refused, too.
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise ValueError(f"temperature={self.temperature} must be between 0 (greedy) and {MOST_TEMPERATURE:g}")
        if not 0 <= self.top_k <= MOST_TOP_K:
            raise ValueError(f"top_k={self.top_k} must be between 0 (all) and {MOST_TOP_K}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be between 0 and 1")


class SamplingError(RuntimeError):
    """A completion that cannot be made, because the model's output for it is NaN or infinite. It costs that completion
    alone."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Static: each distinct value is a program of its own, so nothing about a single request belongs here."""

    max_new_tokens: int
    """Tokens of the longest completion, and the room in the cache kept for it; a request may ask for fewer."""
    distribution: Distribution | None = Distribution()
    """That of every request, compiled in: what reinforcement learning wants. None: each request brings its own, and no
    other one is a compilation."""
    stop_token_ids: tuple[int, ...] = ()
    """A completion ends with the first of them, which is part of it."""
    pad_id: int = 0
    """Any id of the vocabulary; fills prompts up to their bucket and is never seen."""
    slots: int = 32
    """Sequences decoded at once: memory and throughput grow with it."""
    samples: int = 1
    """Slots that can share the keys and values of one prompt; 1: each slot has room for a prompt of its own. More
    samples of a prompt than that are made with copies of it."""
    buckets: tuple[int, ...] = BUCKETS
    """Lengths in tokens that prompts are padded to; one compilation of the prefill each, made when first needed. A
    longer prompt is prefilled in parts of the largest, the last one padded to any: as many compilations again."""
    prefill_rows: int = 4
    """Prompts of one bucket that are prefilled together, at most: a smaller group is padded to a power of two."""
    shared_prefix: int = 256
    """A prompt that begins as one that stands in the cache, for so many tokens at least, is copied that far and run
    from there on; 0: every prompt is run whole."""
    steps_per_call: int = 16
    """Tokens decoded between two looks of the host; `refill` free slots that are waited for end a call early."""
    compute_dtype: str | None = None
    """Of activations and cache, float32 or bfloat16; None: that of the parameters."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "slots", "samples", "prefill_rows", "steps_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampler {name}={getattr(self, name)} must be at least 1")
        if self.shared_prefix < 0:
            raise ValueError(f"sampler shared_prefix={self.shared_prefix} must be 0 (off) or above")
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            raise ValueError(f"sampler buckets={self.buckets} must be lengths of at least 1 in ascending order")

    @property
    def refill(self) -> int:
        """Free slots for which decoding stops while requests wait: a quarter of them, up to two prefills' worth. To
        fill them one at a time costs more than that they idle meanwhile."""
        return max(1, min(2 * self.prefill_rows, self.slots // 4))

    def prompt_rows(self, shards: int) -> int:
        """Prompts that the cache has rows for, where a mesh splits the slots into `shards`: those of the slots, and an
        eighth more, which are filled while a straggler still needs its prompt."""
        slots = self.slots // shards
        needed = -(-slots // self.samples)
        return shards * min(slots, needed + -(-needed // 8))

    def rows(self, prompts: int) -> int:
        """Rows of the program that prefills so many prompts of one bucket."""
        return min(1 << (prompts - 1).bit_length(), self.prefill_rows)

    def bucket(self, length: int) -> int:
        """The smallest bucket that holds `length` tokens, or the largest where none does."""
        return next((size for size in self.buckets if length <= size), self.buckets[-1])

    def is_long(self, length: int) -> bool:
        """Whether a prompt of `length` tokens is prefilled in parts."""
        return length > self.buckets[-1]

    def room(self, length: int) -> int:
        """Positions of the cache for a prompt of `length` tokens: its bucket; for a long one 2, 3, 4, 5, 6, 7, 8, 10,
        12, 14, 16, 20, ... of the largest, so that few different ones occur and little is left empty."""
        if not self.is_long(length):
            return self.bucket(length)
        count = -(-length // self.buckets[-1])
        step = 1 << max(0, (count - 1).bit_length() - 3)
        return self.buckets[-1] * -(-count // step) * step


@dataclasses.dataclass(frozen=True)
class Request:
    """One completion that is wanted."""

    id: int
    """The caller's; unique among the requests in a batch."""
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    max_new_tokens: int
    seed: int = 0
    """64 bits of it count. Draws follow from it, from `sample` and from the place in the sequence alone."""
    sample: int = 0
    """Number among the samples of one prompt and seed."""
    distribution: Distribution = Distribution()
    """Where the sampler has none that is compiled in."""
    stop: tuple[bytes, ...] = ()
    """UTF-8 strings; the completion ends with the token that completes the first of them."""

    def check(self, longest_prompt: int, most_new_tokens: int, vocab_size: int) -> None:
        """Whether every value fits the programs and the model.

        Raises:
            ValueError: For an empty or too long prompt, a number out of range, or an empty stop string.
        """
        if not self.prompt:
            raise ValueError("the prompt is empty: it needs at least one token")
        if len(self.prompt) > longest_prompt:
            raise ValueError(
                f"a prompt of {len(self.prompt)} tokens is longer than the {longest_prompt} that there is room for: "
                "shorten it"
            )
        if min(self.prompt) < 0 or max(self.prompt) >= vocab_size:
            bad = next(token for token in self.prompt if not 0 <= token < vocab_size)
            raise ValueError(f"token id {bad} of the prompt is not in the vocabulary, 0 to {vocab_size - 1}")
        if not 1 <= self.max_new_tokens <= most_new_tokens:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} must be between 1 and the sampler's {most_new_tokens}"
            )
        if not 0 <= self.sample < 2**31:
            raise ValueError(f"sample={self.sample} must be 0 or above, and below 2**31")
        if not all(self.stop):
            raise ValueError("a stop string is empty: it would end every completion before it starts")


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a request got since the last look at it."""

    id: int
    token_ids: list[int]
    log_probs: np.ndarray
    """fp32 [len(token_ids)]"""
    finish_reason: FinishReason | None
    """None: there is more to come."""
    error: str = ""
    """Reason why the request ended without a result; then nothing more comes."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled continuation of one prompt."""

    token_ids: list[int]
    """Without the prompt; the stop token, where there was one, is the last."""
    log_probs: np.ndarray
    """fp32 [len(token_ids)]: of each token under the distribution it was drawn from."""
    finish_reason: FinishReason
    """`stop`: a stop token or a stop string; `length`: the limit of tokens."""
