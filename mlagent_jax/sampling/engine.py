"""The device half of the sampler: the state of all slots, and the programs over it.

    prefill_prompts, prefill_parts   write prompts, or parts of long prompts, into rows of the prompt cache
    start_requests                   begins completions in slots; samples of one prompt share its row
    decode                           advances all slots by a few tokens

Each program consumes (donates) the state and returns the next one. The host half, in `sampling.batch` and
`sampling.rows`, decides what each slot does.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mlagent_jax import models
from mlagent_jax.models import Cache, Graph, Groups, Params
from mlagent_jax.parallelism import constrain, shard_count
from mlagent_jax.sampling.config import Distribution, SamplerConfig
from mlagent_jax.sampling.distribution import Distributions, draw, request_keys


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotState:
    """Slots and prompts on the device. A row keeps its prompt until another prompt overwrites it."""

    prompts: Cache
    """Cache of prompts, [rows, ...]; the samples of a prompt share its row."""
    cache: Cache
    """Cache of completions, [slots, ...]; each slot's completion without its last token."""
    prompt_hidden: jax.Array
    """[rows, hidden]: hidden state of the prompt's last token, from which each sample's first token is drawn."""
    keys: jax.Array
    """Typed random keys [slots], one per request."""
    distributions: Distributions
    """Distribution of each request; unused if the config has one, which is compiled in."""
    last_tokens: jax.Array
    """int32 [slots]: the last drawn token, which is not in the cache yet."""
    positions: jax.Array
    """int32 [slots]: positions of `last_tokens` in their sequences."""
    limits: jax.Array
    """int32 [slots]: maximum tokens of the completion."""
    counts: jax.Array
    """int32 [slots]: tokens of the completion so far."""
    tokens: jax.Array
    """int32 [slots, max_new_tokens]: the completion, in the first `counts` columns."""
    log_probs: jax.Array
    """fp32 [slots, max_new_tokens]: log-probability of each token under the distribution it was drawn from."""
    active: jax.Array
    """bool [slots]: whether the slot is decoding a completion."""
    stopped: jax.Array
    """bool [slots]: whether the completion ended with a stop token. The host finds stop strings (`sampling.stops`)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Look:
    """Values that the host reads after a `decode`."""

    counts: jax.Array
    active: jax.Array
    stopped: jax.Array
    """Field of the same name in `SlotState`."""
    tokens: jax.Array
    """int32 [slots, steps_per_call + 1]: tokens of each completion from the column `taken` of `decode` on."""
    log_probs: jax.Array
    """fp32 [slots, steps_per_call + 1]: their log-probabilities."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Starts:
    """Requests that begin, by slot; all arrays are [slots], and entries of slots outside `starting` are ignored."""

    starting: jax.Array
    """bool: whether a completion begins in the slot."""
    rows: jax.Array
    """int32: row of the prompt."""
    prompt_lengths: jax.Array
    """int32: tokens of the prompt."""
    limits: jax.Array
    """int32: maximum tokens of the completion."""
    seed_low: jax.Array
    """uint32: lower half of the request's seed."""
    seed_high: jax.Array
    """uint32: upper half of the request's seed."""
    samples: jax.Array
    """int32: number of the sample among those of its prompt."""
    distributions: Distributions


@functools.partial(jax.jit, static_argnums=(0, 1, 2), keep_unused=True)
def empty_slots(graph: Graph, config: SamplerConfig, room: int, params: Params) -> SlotState:
    """Return a state of free slots, and empty rows for prompts of up to `room` tokens, in the dtype of the weights.

    The weights are an argument so that the state is committed to their devices, like the output of every other program.
    An uncommitted state would compile its first program twice.
    """
    slots, width = config.slots, config.max_new_tokens
    rows = config.prompt_rows(shard_count("slots", graph.rules))
    dtype = params["embedder"]["embedding"].dtype
    zeros = jnp.zeros((slots,), jnp.int32)
    return SlotState(
        prompts=models.init_cache(graph, rows, room, dtype),
        cache=models.init_cache(graph, slots, width, dtype),
        prompt_hidden=jnp.zeros((rows, graph.config.hidden_size), dtype),
        keys=request_keys(zeros, zeros, zeros),
        distributions=Distributions.same(Distribution(), slots),
        last_tokens=zeros,
        positions=zeros,
        limits=zeros,
        counts=zeros,
        tokens=jnp.zeros((slots, width), jnp.int32),
        log_probs=jnp.zeros((slots, width), jnp.float32),
        active=jnp.zeros((slots,), bool),
        stopped=jnp.zeros((slots,), bool),
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill_prompts(
    graph: Graph, params: Params, state: SlotState, tokens: jax.Array, lengths: jax.Array, rows: jax.Array
) -> SlotState:
    """Run prompts, and write them to rows of the prompt cache.

    Args:
        graph: The model.
        params: Its weights.
        state: The state; donated.
        tokens: int32 [batch, bucket], right-padded prompts.
        lengths: int32 [batch], tokens of each prompt.
        rows: int32 [batch], row of each prompt; a padding prompt has a row out of bounds and is not written.
    """
    hidden, prompts = models.prefill(graph, params, tokens, lengths, state.prompts, rows)
    prompt_hidden = state.prompt_hidden.at[rows].set(hidden, mode="drop")
    return dataclasses.replace(state, prompts=prompts, prompt_hidden=prompt_hidden)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill_parts(
    graph: Graph,
    params: Params,
    state: SlotState,
    tokens: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    rows: jax.Array,
) -> SlotState:
    """Run the next part of each prompt, and write it to its row from position `starts`, int32 [batch], on.

    `tokens` and `lengths` are those of the part. The other arguments are as in `prefill_prompts`.
    """
    hidden, prompts = models.prefill_part(graph, params, tokens, starts, lengths, state.prompts, rows)
    prompt_hidden = state.prompt_hidden.at[rows].set(hidden, mode="drop")
    return dataclasses.replace(state, prompts=prompts, prompt_hidden=prompt_hidden)


@functools.partial(jax.jit, donate_argnums=0)
def copy_prompts(state: SlotState, copies: jax.Array, count: jax.Array) -> SlotState:
    """Copy prompts to other rows, one after the other.

    Args:
        state: The state; donated.
        copies: int32 [rows, 2], pairs (from, to).
        count: int32 [], number of pairs to copy; the others are padding.
    """

    def copy(index: jax.Array, held: Any) -> Any:
        source, target = copies[index]
        return jax.tree.map(lambda rows: rows.at[target].set(rows[source]), held)

    prompts, hidden = jax.lax.fori_loop(0, count, copy, (state.prompts, state.prompt_hidden))
    return dataclasses.replace(state, prompts=prompts, prompt_hidden=hidden)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def start_requests(graph: Graph, config: SamplerConfig, params: Params, state: SlotState, starts: Starts) -> SlotState:
    """Begin completions: draw the first token of each from the last hidden state of its prompt."""
    chosen = functools.partial(jnp.where, starts.starting)
    keys = jax.random.wrap_key_data(
        jnp.where(
            starts.starting[:, None],
            jax.random.key_data(request_keys(starts.seed_low, starts.seed_high, starts.samples)),
            jax.random.key_data(state.keys),
        )
    )
    positions = chosen(starts.prompt_lengths, state.positions)
    state = dataclasses.replace(
        state,
        keys=keys,
        distributions=jax.tree.map(chosen, starts.distributions, state.distributions),
        positions=positions,
        limits=chosen(starts.limits, state.limits),
        counts=chosen(0, state.counts),
        stopped=chosen(False, state.stopped),
        active=state.active | starts.starting,
    )
    logits = _logits(graph, params, jnp.take(state.prompt_hidden, starts.rows, axis=0, mode="clip"))
    drawn = draw(config.distribution or state.distributions, logits, keys, positions)
    return _append(config, state, starts.starting, *drawn)


@functools.partial(jax.jit, static_argnums=(0, 1))
def resize_slots(graph: Graph, config: SamplerConfig, state: SlotState) -> SlotState:
    """Return the state with the slots and rows of `config`: the first ones, or all and free ones after them."""

    def resized(count: int, held: jax.Array) -> jax.Array:
        if jnp.issubdtype(held.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(resized(count, jax.random.key_data(held)))
        missing = max(0, count - len(held))
        return jnp.pad(held[:count], ((0, missing), *((0, 0),) * (held.ndim - 1)))

    def cached(count: int, held: Cache) -> Cache:
        # Written into an empty cache, so that the result has the sharding of a new one.
        empty = models.init_cache(graph, count, held.length, held.values[0].dtype)
        return jax.tree.map(lambda made, held: made.at[:].set(resized(count, held)), empty, held)

    rows = config.prompt_rows(1)
    resident = {"prompts": cached(rows, state.prompts), "prompt_hidden": resized(rows, state.prompt_hidden)}
    of_slots = {"cache": cached(config.slots, state.cache)}
    others = jax.tree.map(
        functools.partial(resized, config.slots), dataclasses.replace(state, **dict.fromkeys((*resident, *of_slots)))
    )
    return dataclasses.replace(others, **resident, **of_slots)


@functools.partial(jax.jit, donate_argnums=0)
def end_requests(state: SlotState, ending: jax.Array) -> SlotState:
    """Abandon the completions of the `ending` slots, bool [slots]."""
    return dataclasses.replace(state, active=state.active & ~ending)


@functools.partial(jax.jit, donate_argnums=0)
def clear_slots(state: SlotState, slots: jax.Array, rows: jax.Array) -> SlotState:
    """Abandon the completions of `slots`, bool [slots], and zero their cache and the prompt `rows`, bool [rows].

    A masked position has weight 0 in attention, and 0 * NaN is NaN: a NaN in a cache would reach the next request.
    """

    def zeroed(clearing: jax.Array, held: Any) -> Any:
        def one(held: jax.Array) -> jax.Array:
            return jnp.where(clearing.reshape(-1, *(1,) * (held.ndim - 1)), jnp.zeros((), held.dtype), held)

        return jax.tree.map(one, held)

    prompts, hidden = zeroed(rows, (state.prompts, state.prompt_hidden))
    cache, active = zeroed(slots, state.cache), state.active & ~slots
    return dataclasses.replace(state, prompts=prompts, prompt_hidden=hidden, cache=cache, active=active)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def decode(
    graph: Graph,
    config: SamplerConfig,
    params: Params,
    state: SlotState,
    groups: Groups,
    awaited: jax.Array,
    taken: jax.Array,
) -> tuple[SlotState, Look]:
    """Advance every active slot by up to `steps_per_call` tokens.

    Decoding ends early when no slot is active. It also ends early when requests wait and `refill` slots became free.

    Args:
        graph: The model.
        config: Shapes, stop tokens and the compiled distribution, if any.
        params: The weights.
        state: The state; donated.
        groups: Prompt row of each slot.
        awaited: bool [], whether requests wait for slots.
        taken: int32 [slots], tokens of each completion that the host has already; the `Look` holds those after them.
    """
    active_before = state.active

    def going(carry: tuple[jax.Array, SlotState]) -> jax.Array:
        step, state = carry
        freed = jnp.sum(active_before & ~state.active) >= config.refill
        return (step < config.steps_per_call) & jnp.any(state.active) & ~(awaited & freed)

    def advance(carry: tuple[jax.Array, SlotState]) -> tuple[jax.Array, SlotState]:
        step, state = carry
        # A free slot writes beyond the cache, so the write is dropped and the slot attends to no position.
        written = jnp.where(state.active, state.counts - 1, state.cache.length)
        tokens, positions = state.last_tokens, state.positions
        both = state.cache, state.prompts, groups
        hidden, cache = models.decode_step(graph, params, tokens, positions, written, *both)
        state = dataclasses.replace(state, cache=cache, positions=state.positions + state.active)
        logits = _logits(graph, params, hidden)
        drawn = draw(config.distribution or state.distributions, logits, state.keys, state.positions)
        return step + 1, _append(config, state, state.active, *drawn)

    state = jax.lax.while_loop(going, advance, (jnp.int32(0), state))[1]
    columns = taken[:, None] + jnp.arange(config.steps_per_call + 1)
    tokens, log_probs = (
        jnp.take_along_axis(made, columns, axis=1, mode="clip") for made in (state.tokens, state.log_probs)
    )
    look = Look(state.counts, state.active, state.stopped, tokens, log_probs)
    # Replicated, so that on a mesh of several processes each host reads it from its own devices.
    return state, jax.tree.map(lambda x: constrain(x, (None,) * x.ndim, graph.rules, "look"), look)


def _logits(graph: Graph, params: Params, hidden: jax.Array) -> jax.Array:
    """Compute logits: [slots, hidden] -> fp32 [slots, vocab].

    On a mesh they are computed with the vocabulary split, and then resharded by slots, so that rows are whole.
    """
    split = constrain(models.logits(graph, params, hidden), ("vocab_batch", "vocab"), graph.rules, "logits")
    rows = "draws" if len(hidden) % shard_count("draws", graph.rules) == 0 else "slots"
    return constrain(split, (rows, None), graph.rules, "logits")


def _append(
    config: SamplerConfig,
    state: SlotState,
    drawing: jax.Array,
    tokens: jax.Array,
    log_probs: jax.Array,
) -> SlotState:
    """Append a drawn token to the completions of the `drawing` slots, and end completions that are finished.

    `drawing` is bool, `tokens` int32 and `log_probs` fp32, all [slots].
    """
    rows = jnp.arange(config.slots)
    column = jnp.where(drawing, state.counts, config.max_new_tokens)  # beyond the buffer: not written
    counts = state.counts + drawing
    stop = jnp.isin(tokens, jnp.asarray(config.stop_token_ids, jnp.int32)) & drawing
    return dataclasses.replace(
        state,
        last_tokens=jnp.where(drawing, tokens, state.last_tokens),
        tokens=state.tokens.at[rows, column].set(tokens, mode="drop"),
        log_probs=state.log_probs.at[rows, column].set(log_probs, mode="drop"),
        counts=counts,
        stopped=state.stopped | stop,
        active=state.active & ~(stop | (counts >= state.limits)),
    )
