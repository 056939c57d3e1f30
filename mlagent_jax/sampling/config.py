"""Settings of a sampler, its requests and its results."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

FinishReason = Literal["stop", "length"]
MOST_TEMPERATURE = 1e30
"""Maximum temperature. Compilers multiply by its reciprocal, which is still a normal 32-bit number."""
MOST_TOP_K = 2**31 - 1
"""Maximum `top_k`, which programs hold as int32."""

BUCKETS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

NOT_A_NUMBER = (
    "the model's output is NaN or infinite, so that no token can be drawn: its weights are damaged, or their dtype too "
    "narrow for them"
)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Settings of the distribution that tokens are drawn from.

    Raises:
        ValueError: A setting is out of range.
    """

    temperature: float = 1.0
    """Divisor of the logits. 0 takes the most probable token, with its log-probability at temperature 1. A positive
    value below the smallest normal 32-bit number counts as 0."""
    top_k: int = 0
    """Number of most probable tokens to keep (with all that tie with the last); 0: all. At most `MOST_TOP_K`."""
    top_p: float = 1.0
    """Probability that the kept, most probable tokens reach together (with all that tie with the last). At least one
    token is kept; 1: all."""
    min_p: float = 0.0
    """Minimum probability of a kept token, as a fraction of the most probable token's; 0: all."""

    def __post_init__(self) -> None:
        if 0 < self.temperature < float(np.finfo(np.float32).tiny):  # devices flush such a number to 0
            object.__setattr__(self, "temperature", 0.0)
        # Written so that NaN is refused too.
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise ValueError(f"temperature={self.temperature} must be between 0 (greedy) and {MOST_TEMPERATURE:g}")
        if not 0 <= self.top_k <= MOST_TOP_K:
            raise ValueError(f"top_k={self.top_k} must be between 0 (all) and {MOST_TOP_K}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be between 0 and 1")


class SamplingError(RuntimeError):
    """Error of a completion whose model output is NaN or infinite. Other completions are not affected."""


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Static settings of the programs. Each distinct value compiles its own programs, so nothing about a single request
    belongs here.

    Raises:
        ValueError: A setting is out of range.
    """

    max_new_tokens: int
    """Maximum tokens per completion, and capacity of a slot in the cache. A request may ask for fewer."""
    distribution: Distribution | None = Distribution()
    """Distribution of all requests, compiled into the programs (for reinforcement learning). None: each request has its
    own, and a new one needs no compilation."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion; the stop token is its last token."""
    pad_id: int = 0
    """Id of the token that pads prompts to their bucket. Any id of the vocabulary will do: padding is masked."""
    slots: int = 32
    """Number of sequences decoded at once; memory and throughput grow with it."""
    samples: int = 1
    """Maximum slots that share the keys and values of one prompt; 1: each slot has a row for its own prompt. Further
    samples of a prompt use copies of it."""
    buckets: tuple[int, ...] = BUCKETS
    """Lengths in tokens that prompts are padded to. The prefill is compiled once per length, on first use. A longer
    prompt is run in parts of the largest length, and its last part is padded to any of the lengths. Programs for parts
    are compiled separately, again once per length."""
    prefill_rows: int = 4
    """Maximum prompts of one bucket that are run together; a smaller group is padded to a power of two."""
    shared_prefix: int = 256
    """Minimum tokens that a prompt must share with a cached one for a copy. The shared beginning is copied, and only
    the rest is run. 0: every prompt is run whole."""
    steps_per_call: int = 16
    """Maximum tokens per slot in a call of `decode`. A call ends early if requests wait and `refill` slots are free."""
    compute_dtype: str | None = None
    """Dtype of activations and cache, float32 or bfloat16; None: the dtype of the parameters."""

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
        """Number of free slots at which decoding stops while requests wait.

        It is a quarter of the slots, at most two full prefills. Filling slots one at a time would cost more than
        leaving them idle for that long.
        """
        return max(1, min(2 * self.prefill_rows, self.slots // 4))

    def prompt_rows(self, shards: int) -> int:
        """Return the number of prompt rows in the cache, if a mesh splits the slots into `shards`.

        An eighth more rows than the slots need lets new prompts in while a straggler still reads an old one.
        """
        slots = self.slots // shards
        needed = -(-slots // self.samples)
        return shards * min(slots, needed + -(-needed // 8))

    def rows(self, prompts: int) -> int:
        """Return the rows of the prefill program for this number of prompts of one bucket."""
        return min(1 << (prompts - 1).bit_length(), self.prefill_rows)

    def bucket(self, length: int) -> int:
        """Return the smallest bucket that holds `length` tokens, or the largest bucket if none does."""
        return next((size for size in self.buckets if length <= size), self.buckets[-1])

    def is_long(self, length: int) -> bool:
        """Return whether a prompt of `length` tokens is prefilled in parts."""
        return length > self.buckets[-1]

    def room(self, length: int) -> int:
        """Return the capacity of a cache row, in tokens, for a prompt of `length` tokens.

        A short prompt gets its bucket. A long one gets a multiple of the largest bucket, 2, 3, 4, 5, 6, 7, 8, 10, 12,
        14, 16, 20, ..., so that few capacities occur and little of a row stays empty.
        """
        if not self.is_long(length):
            return self.bucket(length)
        count = -(-length // self.buckets[-1])
        step = 1 << max(0, (count - 1).bit_length() - 3)
        return self.buckets[-1] * -(-count // step) * step


@dataclasses.dataclass(frozen=True)
class Request:
    """Request for one completion."""

    id: int
    """Id chosen by the caller, unique within a batch."""
    prompt: tuple[int, ...]
    """Token ids, at least one."""
    max_new_tokens: int
    """Maximum tokens of the completion."""
    seed: int = 0
    """Seed, of which 64 bits count. A draw depends only on the seed, `sample` and the position in the sequence."""
    sample: int = 0
    """Number of the sample among those of one prompt and seed."""
    distribution: Distribution = Distribution()
    """Distribution of the draws; ignored if the sampler has one compiled in."""
    stop: tuple[bytes, ...] = ()
    """Stop strings in UTF-8; the token that completes the first of them ends the completion."""

    def check(self, longest_prompt: int, most_new_tokens: int, vocab_size: int) -> None:
        """Check every value against the limits of the programs and the model.

        Raises:
            ValueError: The prompt is empty or too long, a number is out of range, or a stop string is empty.
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
    """New tokens of a request since its last progress."""

    id: int
    """Id of the request."""
    token_ids: list[int]
    log_probs: np.ndarray
    """fp32 [len(token_ids)]: log-probability of each token."""
    finish_reason: FinishReason | None
    """Reason of the end, see `Completion`; None: the request is still running."""
    error: str = ""
    """Reason for the end of a request that failed; no further progress follows. Empty otherwise."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled continuation of one prompt."""

    token_ids: list[int]
    """Tokens without the prompt; a stop token is included as the last one."""
    log_probs: np.ndarray
    """fp32 [len(token_ids)]: log-probability of each token under the distribution it was drawn from."""
    finish_reason: FinishReason
    """Reason of the end: `stop` for a stop token or stop string, `length` for the token limit."""
