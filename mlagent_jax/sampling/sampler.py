"""Text in, text out: the sampler as a library.

model, tokenizer = load("exported")
sampler = Sampler(model, tokenizer)
for samples in sampler.generate(["def f(x):"], n=4, max_new_tokens=256, stop=["Observation:"], seed=0):
    print([sample.text for sample in samples])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.parallelism import shard_count
from mlagent_jax.sampling.batch import Batch
from mlagent_jax.sampling.checkpoint import Model
from mlagent_jax.sampling.config import BUCKETS, Distribution, FinishReason, Request, SamplerConfig, SamplingError
from mlagent_jax.sampling.first_runs import FirstRuns
from mlagent_jax.sampling.plan import plan_slots
from mlagent_jax.sampling.text import TextStream
from mlagent_jax.sampling.weights import Preparation

Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Delta:
    """New text and tokens of one sample. `joined` makes a `Generation` of all deltas of a sample."""

    prompt: int
    """Index of the prompt in the call."""
    sample: int
    """Number of the sample among those of the prompt."""
    text: str
    """New text. It may lag behind the tokens, since text is returned only once it is final."""
    token_ids: list[int]
    """New tokens."""
    log_probs: list[float]
    """Log-probability of each new token."""
    finish_reason: FinishReason | None
    """Reason of the end, see `Generation`; None: the sample is still running."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One sampled continuation of one prompt."""

    text: str
    """Text before the stop token or stop string."""
    token_ids: list[int]
    """All drawn tokens. The last one may be a stop token, or the token that completes a stop string."""
    log_probs: list[float]
    """Log-probability of each token under the distribution it was drawn from."""
    finish_reason: FinishReason
    """Reason of the end: `stop` for a stop token or stop string, `length` for `max_new_tokens`."""


class Sampler:
    """Generates text with a model.

    Between calls, a sampler holds only the weights on the device. Weights that decoding cannot read in their layout or
    dtype are copied, and the copies are held too. Weights from `load` need no copy, unless `compute_dtype` differs.

    Args:
        model: Model from `load`, or `Model(graph, params)` with the arrays of a trainer.
        tokenizer: Tokenizer of the model.
        slots: Number of sequences decoded at once; None: as many as fit in memory and a call can use.
        compute_dtype: Dtype of activations and cache, float32 or bfloat16; None: the dtype of the parameters.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, slots: int | None = None, compute_dtype: str | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._config = SamplerConfig(
            max_new_tokens=BUCKETS[0],
            distribution=None,
            stop_token_ids=tuple(sorted({*tokenizer.stop_ids, *model.stop_token_ids})),
            pad_id=tokenizer.pad_id,
            compute_dtype=compute_dtype,
        )
        self._spellings = tokenizer.spellings()
        self._slots = slots
        self._run = FirstRuns()
        self._prepare = Preparation(compute_dtype)

    @property
    def max_length(self) -> int:
        """Maximum tokens of a prompt with its completion, the number of positions of the model."""
        return self.model.graph.config.max_position_embeddings

    def encode(self, prompt: Prompt, *, parse_special: bool = False, add_special: bool = False) -> tuple[int, ...]:
        """Return the token ids of a prompt.

        Args:
            prompt: Text, or token ids, which are checked and returned.
            parse_special: See `Tokenizer.encode`.
            add_special: See `Tokenizer.encode`.

        Raises:
            ValueError: The prompt has no token, or a token outside the vocabulary.
        """
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, parse_special=parse_special, add_special=add_special)
        tokens = tuple(map(int, prompt))
        if not tokens:
            raise ValueError("the prompt is empty: it needs at least one token")
        vocab_size = self.model.graph.config.vocab_size
        if bad := [token for token in tokens if not 0 <= token < vocab_size]:
            raise ValueError(f"token id {bad[0]} of the prompt is not in the vocabulary, 0 to {vocab_size - 1}")
        return tokens

    def check_length(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Check that a prompt and a completion of these lengths fit the model.

        Raises:
            ValueError: `max_new_tokens` is below 1, or the sum of both exceeds the model's positions.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        if prompt_tokens + max_new_tokens > self.max_length:
            raise ValueError(
                f"a prompt of {prompt_tokens} tokens and max_new_tokens={max_new_tokens} are longer than the model's "
                f"{self.max_length} positions together: shorten the prompt or ask for fewer tokens"
            )

    def plan_slots(self, longest_prompt: int, max_new_tokens: int, samples: int = 1) -> int:
        """Return the number of slots for a `batch`: the sampler's `slots`, else as many as fit. Allocates nothing.

        Args:
            longest_prompt: Maximum tokens of a prompt.
            max_new_tokens: Maximum tokens of a completion.
            samples: Slots that share one prompt, see `SamplerConfig`.

        Raises:
            ValueError: Not even one slot fits.
        """
        if self._slots is not None:
            return self._slots
        settings, room = self._settings(max_new_tokens, 1, samples), self._config.room(longest_prompt)
        graph, dtype = self.model.graph, self._config.compute_dtype
        params = self.model.params
        return plan_slots(
            *(graph.config, settings, params, room, dtype),
            copied=self._prepare.copied_bytes(params),
            heads=shard_count("kv_heads", graph.rules),
            shards=shard_count("slots", graph.rules),
        )

    def batch(
        self, longest_prompt: int, max_new_tokens: int, slots: int, *, samples: int = 1, elastic: bool = False
    ) -> Batch:
        """Return a new batch, which holds its device memory until it is deleted.

        Args:
            longest_prompt: Maximum tokens of a prompt.
            max_new_tokens: Maximum tokens of a completion.
            slots: Number of slots.
            samples: Slots that share one prompt, see `SamplerConfig`.
            elastic: See `Batch`.
        """
        config = self._settings(max_new_tokens, slots, samples)
        weights = self._prepare(self.model.params)
        settings = {"spellings": self._spellings, "run": self._run, "elastic": elastic}
        return Batch(self.model.graph, config, weights, longest_prompt, **settings)

    def _settings(self, max_new_tokens: int, slots: int, samples: int) -> SamplerConfig:
        longest = self._config.room(max_new_tokens)
        return dataclasses.replace(self._config, max_new_tokens=longest, slots=slots, samples=samples)

    def text_stream(self, stop: Sequence[str] = ()) -> TextStream:
        """Return a decoder for the text of one completion. The caller must remove stop tokens, see `spoken`."""
        return TextStream(self._spellings, stop)

    def spoken(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Return the tokens without a stop token at the end."""
        ended = bool(token_ids) and token_ids[-1] in self._config.stop_token_ids
        return token_ids[: len(token_ids) - ended]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
    ) -> list[list[Generation]]:
        """Generate `n` continuations of each prompt.

        A sample depends only on its prompt, its seed, its number among the samples and the weights. Other prompts of
        the call affect nothing but rounding.

        Args:
            prompts: Texts, or token ids.
            n: Samples per prompt.
            max_new_tokens: Maximum tokens per sample.
            temperature: Divisor of the logits, see `Distribution`; 0 for the most probable token.
            top_k: Number of most probable tokens to keep, see `Distribution`; 0 for all.
            top_p: Probability of the most probable tokens to keep, see `Distribution`; 1 for all.
            min_p: Minimum probability relative to the most probable token, see `Distribution`; 0 for all.
            stop: Strings that end a sample at any place in its text; they are removed from it.
            seed: One seed for all prompts, which gives equal prompts equal samples, or one per prompt. 64 bits count.

        Returns:
            The samples of each prompt, in the order of the prompts.

        Raises:
            ValueError: A prompt is empty or too long, or a setting is out of range. The message names it.
            SamplingError: The model's output for a prompt is not a number. The message names the prompt.
        """
        samples: dict[tuple[int, int], list[Delta]] = {}
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        for delta in self.stream(prompts, n=n, max_new_tokens=max_new_tokens, **settings, stop=stop, seed=seed):
            samples.setdefault((delta.prompt, delta.sample), []).append(delta)
        return [[joined(samples[prompt, sample]) for sample in range(n)] for prompt in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int = 1,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
    ) -> Iterator[Delta]:
        """Yield the new text and tokens of each sample as they become available; samples are interleaved.

        The arguments are those of `generate`.

        Raises:
            ValueError: As in `generate`, before anything is sampled.
            SamplingError: The model's output for a prompt is not a number. The message names the prompt.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts is one string: give a list of them")
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one for all, or one a prompt")
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        distribution = Distribution(temperature, top_k, top_p, min_p)
        stop = check_stop(stop)
        spelled = tuple(string.encode() for string in stop)
        encoded = []
        for place, prompt in enumerate(prompts):
            try:
                encoded.append(self.encode(prompt))
                self.check_length(len(encoded[-1]), max_new_tokens)
            except ValueError as error:
                raise ValueError(f"prompt {place}: {error}") from error
        requests = [
            Request(place * n + sample, tokens, max_new_tokens, seeds[place], sample, distribution, spelled)
            for place, tokens in enumerate(encoded)
            for sample in range(n)
        ]
        return self._stream(requests, n, stop)

    def _stream(self, requests: list[Request], n: int, stop: tuple[str, ...]) -> Iterator[Delta]:
        if not requests:
            return
        lengths = max(len(request.prompt) for request in requests), requests[0].max_new_tokens
        # No more slots than the call can use. Rounded up, since each number of slots is compiled separately.
        useful = 1 << (len(requests) - 1).bit_length()
        slots = self._slots or min(useful, self.plan_slots(*lengths, n))
        batch = self.batch(*lengths, slots, samples=min(n, slots))
        batch.submit(requests)
        texts = {request.id: self.text_stream(stop) for request in requests}
        while batch.busy:
            for progress in batch.step():
                if progress.error:
                    raise SamplingError(f"prompt {progress.id // n}, sample {progress.id % n}: {progress.error}")
                ended = progress.finish_reason is not None
                text = texts[progress.id].feed(self.spoken(progress.token_ids), last=ended)
                place, sample = divmod(progress.id, n)
                log_probs = progress.log_probs.tolist()
                yield Delta(place, sample, text, progress.token_ids, log_probs, progress.finish_reason)


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings in order, without repetitions.

    Raises:
        ValueError: One is empty, or `stop` is a single string.
    """
    if isinstance(stop, str):
        raise ValueError(f"stop={stop!r} is one string: give a list of them")
    if not all(stop):
        raise ValueError(f"stop={list(stop)} has an empty string, which would end every completion before it starts")
    return tuple(dict.fromkeys(stop))


def joined(deltas: Sequence[Delta]) -> Generation:
    """Join all deltas of one sample, given in order."""
    return Generation(
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        log_probs=[log_prob for delta in deltas for log_prob in delta.log_probs],
        finish_reason=deltas[-1].finish_reason,
    )
