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
    """What one sample of one prompt got; its deltas joined are its `Generation`."""

    prompt: int
    """Place of the prompt in the call."""
    sample: int
    """Number among the samples of that prompt."""
    text: str
    """May lag behind the tokens: it is only given out when it is certain."""
    token_ids: list[int]
    log_probs: list[float]
    finish_reason: FinishReason | None
    """None: there is more to come."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One sampled continuation of one prompt."""

    text: str
    """Up to the stop token or stop string, without it."""
    token_ids: list[int]
    """All that were drawn: the stop token, or the token that completes the stop string, is the last."""
    log_probs: list[float]
    """Of each token, under the distribution that it was drawn from."""
    finish_reason: FinishReason
    """`stop`: a stop token or stop string; `length`: `max_new_tokens`."""


class Sampler:
    """Generates text with a model's weights; between calls it holds no device memory but theirs, and a copy of those
    that decoding cannot read where they are (of `load`'s none, unless `compute_dtype` is another).

    Args:
        model: From `load`, or `Model(graph, params)` around the arrays of a trainer.
        tokenizer: Its tokenizer.
        slots: Sequences decoded at once; None: as many as memory allows and a call can use.
        compute_dtype: Of activations and cache, float32 or bfloat16; None: that of the parameters.
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
        """Tokens of a prompt and its completion, at most: what the model was made for."""
        return self.model.graph.config.max_position_embeddings

    def encode(self, prompt: Prompt, *, parse_special: bool = False, add_special: bool = False) -> tuple[int, ...]:
        """Token ids of a prompt, which may be some already; the settings are those of `Tokenizer.encode`.

        Raises:
            ValueError: It has none, or one that is not in the vocabulary.
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
        """Whether a completion fits.

        Raises:
            ValueError: The limit is below 1, or both together are longer than the model's positions.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        if prompt_tokens + max_new_tokens > self.max_length:
            raise ValueError(
                f"a prompt of {prompt_tokens} tokens and max_new_tokens={max_new_tokens} are longer than the model's "
                f"{self.max_length} positions together: shorten the prompt or ask for fewer tokens"
            )

    def plan_slots(self, longest_prompt: int, max_new_tokens: int, samples: int = 1) -> int:
        """How many slots a `batch` for such lengths has: what was set, else what fits; nothing is allocated.

        Raises:
            ValueError: Not even one fits.
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
        """Slots for prompts and completions of at most so many tokens, for as long as they are kept; `samples` as in
        `SamplerConfig`, `elastic` as in `Batch`."""
        config = self._settings(max_new_tokens, slots, samples)
        weights = self._prepare(self.model.params)
        settings = {"spellings": self._spellings, "run": self._run, "elastic": elastic}
        return Batch(self.model.graph, config, weights, longest_prompt, **settings)

    def _settings(self, max_new_tokens: int, slots: int, samples: int) -> SamplerConfig:
        longest = self._config.room(max_new_tokens)
        return dataclasses.replace(self._config, max_new_tokens=longest, slots=slots, samples=samples)

    def text_stream(self, stop: Sequence[str] = ()) -> TextStream:
        """The text of one completion while it is made; stop tokens are to be left out by the caller (`spoken`)."""
        return TextStream(self._spellings, stop)

    def spoken(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The tokens that make text: without a stop token at the end."""
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
        """`n` continuations of each prompt, in the order of the prompts.

        A sample follows from its prompt, its seed, its number among the samples and the weights: what else is in the
        call changes nothing but rounding.

        Args:
            prompts: Texts, or token ids.
            n: Samples a prompt.
            max_new_tokens: Limit of each.
            temperature: As the other settings of the distribution in `Distribution`.
            top_k: 0 for all.
            top_p: 1 for all.
            min_p: 0 for all.
            stop: Strings that end a sample wherever they come to stand in its text; they are not part of it.
            seed: One for all prompts (equal prompts then get equal samples), or one a prompt. 64 bits of it count.

        Raises:
            ValueError: A prompt is empty or too long, or a setting is impossible; the message names it.
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
        """As `generate`, yielding what each sample got as soon as it is known, samples interleaved.

        Raises:
            ValueError: As `generate`, before anything is sampled.
            SamplingError: The model's output for a prompt is not a number; the message names the prompt.
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
        # No more than can be used; rounded, for each number is a compilation.
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
    """Stop strings, in order and once each.

    Raises:
        ValueError: One is empty, or `stop` is a single string.
    """
    if isinstance(stop, str):
        raise ValueError(f"stop={stop!r} is one string: give a list of them")
    if not all(stop):
        raise ValueError(f"stop={list(stop)} has an empty string, which would end every completion before it starts")
    return tuple(dict.fromkeys(stop))


def joined(deltas: Sequence[Delta]) -> Generation:
    """All deltas of one sample, in order."""
    return Generation(
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        log_probs=[log_prob for delta in deltas for log_prob in delta.log_probs],
        finish_reason=deltas[-1].finish_reason,
    )
