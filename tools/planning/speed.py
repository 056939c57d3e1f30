"""Seconds of an iteration's parts at a slice's published rates.

Each part reads bytes of device memory, multiplies, and exchanges bytes with other devices. Reading and multiplying go
on together. Sampling waits for its exchanges, which stand between the layers of a token; an update gathers weights
ahead. A real program is slower: launches, small products and what is not counted here (norms, the draw, the optimizer's
moments) take time too. Prompts and actions count at their longest.
"""

from __future__ import annotations

import dataclasses
import math

from mlagent_jax.models import ModelConfig
from mlagent_jax.parallelism.slices import Slice
from mlagent_jax.sampling.config import SamplerConfig
from mlagent_jax.sampling.plan import cache_bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """What an iteration does; counts are of all devices."""

    states: int
    samples: int
    """Actions a state."""
    prompt_tokens: int
    action_tokens: int
    epochs: int
    row_passes: int
    """Passes that one epoch's rows are cut into, each of which gathers the weights."""
    settings: SamplerConfig
    heads: int
    """Devices that the sampler splits key-value heads over; the others split the slots."""
    remat: bool = True

    @property
    def actions(self) -> int:
        """Of an iteration."""
        return self.states * self.samples


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of an iteration: what each kind of work would take alone."""

    name: str
    reading: float
    """Seconds to read device memory."""
    multiplying: float
    exchanging: float
    waits: bool
    """Whether it waits for exchanges."""

    @property
    def roofline(self) -> float:
        """Seconds of reading and multiplying together."""
        return max(self.reading, self.multiplying)

    @property
    def seconds(self) -> float:
        """In all."""
        return self.roofline + self.exchanging if self.waits else max(self.roofline, self.exchanging)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of an iteration."""

    token: Part
    """One decoding step of all slots."""
    tokens_a_second: float
    """That decoding makes, all slots in use."""
    parts: tuple[Part, ...]
    """Prefill, decoding, update."""

    @property
    def sampling_seconds(self) -> float:
        """Prefill and decoding."""
        return sum(part.seconds for part in self.parts[:2])

    @property
    def update_seconds(self) -> float:
        """The last part's."""
        return self.parts[2].seconds


def predict(model: ModelConfig, slice_: Slice, work: Work) -> Speed:
    """What an iteration takes where nothing but the counted work takes time."""
    token, prefill = _token(model, slice_, work), _prefill(model, slice_, work)
    slots = work.settings.slots
    steps = math.ceil(work.actions / slots) * work.action_tokens
    decoding = _times(token, steps, "decoding")
    update = _update(model, slice_, work)
    return Speed(token, min(slots, work.actions) / token.seconds, (prefill, decoding, update))


def _times(part: Part, count: int, name: str) -> Part:
    figures = (count * each for each in (part.reading, part.multiplying, part.exchanging))
    return Part(name, *figures, part.waits)


def _weights(model: ModelConfig) -> tuple[int, int, int]:
    """Weights that each token is multiplied with: attention and MLP of all layers, and the output projection."""
    width = model.hidden_size
    attention = 2 * width * model.head_dim * (model.num_heads + model.num_kv_heads)
    mlp = 3 * width * model.intermediate_size
    return model.num_layers * attention, model.num_layers * mlp, model.vocab_size * width


def _resident_bytes(model: ModelConfig, slice_: Slice, work: Work) -> float:
    """A device, of the sampler's weights in 16 bits, as `sampling.layout` splits them."""
    attention, mlp, vocabulary = _weights(model)
    return 2 * (attention / work.heads + (mlp + vocabulary) / slice_.devices)


def _attention_flops(model: ModelConfig, queries: float, keys: float) -> float:
    return 4 * model.num_layers * model.num_heads * model.head_dim * queries * keys


def _exchanged(model: ModelConfig, slice_: Slice, work: Work, tokens: float) -> float:
    """Bytes that leave a device where results of so many tokens are summed: of attention over the heads' devices, of
    the MLP over all. A ring sends each byte twice."""
    if slice_.devices == 1:
        return 0.0
    of_attention = tokens / (slice_.devices // work.heads) if work.heads > 1 else 0.0
    return 2 * 2 * model.num_layers * model.hidden_size * (of_attention + tokens)


def _token(model: ModelConfig, slice_: Slice, work: Work) -> Part:
    settings = work.settings
    shards = slice_.devices // work.heads
    held = settings.prompt_rows(shards) * work.prompt_tokens + settings.slots * work.action_tokens // 2
    read = _resident_bytes(model, slice_, work) + cache_bytes(model, held, "bfloat16") / slice_.devices
    context = work.prompt_tokens + work.action_tokens / 2
    flops = 2 * settings.slots * sum(_weights(model)) + _attention_flops(model, settings.slots, context)
    exchanged = _exchanged(model, slice_, work, settings.slots)
    exchanged += 4 * settings.slots * model.vocab_size / slice_.devices if slice_.devices > 1 else 0  # logits, by slot
    return Part("token", *_seconds(slice_, read, flops, exchanged), True)


def _prefill(model: ModelConfig, slice_: Slice, work: Work) -> Part:
    tokens, longest = work.states * work.prompt_tokens, work.prompt_tokens
    attention, mlp, _ = _weights(model)
    flops = 2 * (attention + mlp) * tokens + _attention_flops(model, tokens, longest / 2)
    settings, shards = work.settings, slice_.devices // work.heads
    rows = -(-settings.prefill_rows // shards) * shards
    calls = math.ceil(work.states / rows) * math.ceil(longest / settings.buckets[-1])
    read = calls * _resident_bytes(model, slice_, work)
    return Part("prefill", *_seconds(slice_, read, flops, _exchanged(model, slice_, work, tokens)), True)


def _update(model: ModelConfig, slice_: Slice, work: Work) -> Part:
    """Two scorings, and a forward and a backward pass of twice as much an epoch, with remat the forward pass again."""
    time = work.prompt_tokens + work.action_tokens
    attention, mlp, vocabulary = _weights(model)
    forward = 2 * (attention + mlp) * work.actions * time + 2 * vocabulary * work.actions * work.action_tokens
    forward += _attention_flops(model, work.actions * time, time / 2)
    passes = 2 + work.epochs * (4 if work.remat else 3)
    weights = 2 * (attention + mlp + vocabulary)
    # Each pass gathers the weights, once more in its backward pass, and scatters gradients of twice the width.
    gathers = work.row_passes * (2 + 4 * work.epochs)
    exchanged = gathers * weights if slice_.devices > 1 else 0
    read = gathers * weights
    return Part("update", *_seconds(slice_, read, passes * forward, exchanged), False)


def _seconds(slice_: Slice, read: float, flops: float, exchanged: float) -> tuple[float, float, float]:
    """`read` and `exchanged` bytes a device, `flops` of all devices; 0 at a rate that is not known."""
    return (
        read / slice_.memory_bandwidth if slice_.memory_bandwidth else 0.0,
        flops / (slice_.peak_flops * slice_.devices),
        exchanged / slice_.link_bandwidth if slice_.link_bandwidth else 0.0,
    )
