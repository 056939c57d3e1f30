"""The steps of a run as programs over abstract arrays, to be compiled for devices that are not there.

They are the programs that the stages run (`sft_step`, `ppo_step`) and, for the sampler, the two steps over its cache.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlagent_jax import models
from mlagent_jax.models import Cache
from mlagent_jax.models.cache import KEY_AXES, VALUE_AXES
from mlagent_jax.rl import ppo
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling.config import SamplerConfig
from mlagent_jax.sampling.weights import reads_stacked
from mlagent_jax.settings.schema import RLConfig
from mlagent_jax.sft.step import sft_step
from tools.planning.blueprint import Blueprint, Tree, bytes_a_device

ROWS_AXES = ("batch", "time")


@dataclasses.dataclass(frozen=True)
class Program:
    """One step of a run."""

    name: str
    """sft_step, ppo_step, prefill or decode_step."""
    shape: str
    """What it works on, in words."""
    step: Callable[..., Any]
    """Jitted; `step.lower(*arguments, **static)`."""
    arguments: tuple[Any, ...]
    static: dict[str, Any]
    rows: int
    """Rows of a pass of all devices."""
    time: int
    """Positions a row; 1: no array of [rows, time, vocab] can be meant."""
    beside_bytes: int = 0
    """A device, of what the stage holds meanwhile and the program does not take."""


def make(name: str, blueprint: Blueprint) -> Program:
    """The program of this name.

    Raises:
      ConfigError: there is none, or the mesh does not divide a batch.
    """
    makers = {
        "sft_step": sft_program,
        "ppo_step": ppo_program,
        "prefill": prefill_program,
        "decode_step": decode_program,
    }
    if name not in makers:
        raise ConfigError(f"program {name!r} is unknown; choose among {', '.join(makers)}")
    return makers[name](blueprint)


def sft_program(blueprint: Blueprint) -> Program:
    """One optimizer step of supervised fine-tuning."""
    config = blueprint.config.sft
    rows, time = config.batch_size, config.row_tokens
    micro = pass_rows(blueprint, "sft", rows, config.micro_batch)

    def batch(dtype: Any) -> jax.ShapeDtypeStruct:
        return blueprint.array((rows, time), dtype, ROWS_AXES)

    packed = {name: batch(jnp.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    static = {
        "graph": blueprint.graph,
        "optimizer": blueprint.sft_optimizer,
        "remat": blueprint.config.policy.remat,
        "compute_dtype": blueprint.config.policy.compute_dtype,
        "micro_rows": config.micro_batch,
        "base": None if blueprint.adapters is None else blueprint.base,
    }
    arguments = (blueprint.trained, blueprint.sft_state(), packed | {"mask": batch(jnp.bool_)})
    words = f"{rows} rows of {time} tokens, {micro} at a time"
    return Program("sft_step", words, sft_step, arguments, static, micro, time)


def ppo_program(blueprint: Blueprint) -> Program:
    """One optimizer step of PPO, on one mini-batch."""
    config = blueprint.config
    rows = config.rl.states * config.rl.samples // config.rl.minibatches
    time, action = row_tokens(blueprint), config.prompt.max_action_tokens
    config_rl = rl_config(blueprint, rows)
    micro = pass_rows(blueprint, "rl", rows, config_rl.micro_batch)

    def batch(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return blueprint.array((rows, *shape), dtype, ("batch", *(None,) * len(shape)))

    sampled = ppo.Batch(
        tokens=batch(time, dtype=jnp.int32),
        prompt_lengths=batch(dtype=jnp.int32),
        actions=batch(action, dtype=jnp.int32),
        mask=batch(action, dtype=jnp.bool_),
        behaviour_log_probs=batch(action),
        rewards=batch(),
        groups=batch(dtype=jnp.int32),
        weights=batch(),
        baselines=batch(),
    )
    targets = ppo.Targets(*(batch(action) for _ in dataclasses.fields(ppo.Targets)))
    policy = config.policy
    static = {
        "model": ppo.Model(blueprint.graph, config.sampling.temperature, policy.compute_dtype, policy.remat),
        "optimizer": blueprint.rl_optimizer,
        "config": config_rl,
        "base": None if blueprint.adapters is None else blueprint.base,
    }
    arguments = (blueprint.rl_params, blueprint.rl_state(), sampled, targets, blueprint.array((), jnp.float32))
    words = f"{rows} rows of {time} tokens ({action} of the action), {micro} at a time"
    return Program("ppo_step", words, ppo.ppo_step, arguments, static, micro, time, reference_bytes(blueprint))


def rl_config(blueprint: Blueprint, rows: int) -> RLConfig:
    """The rl settings of a step on `rows` rows, a token budget turned into rows."""
    config = blueprint.config.rl
    micro = ppo.micro_rows(config, rows, row_tokens(blueprint), blueprint.row_shards)
    return dataclasses.replace(config, micro_batch=micro)


def prefill_program(blueprint: Blueprint) -> Program:
    """Some of the longest prompts, or parts of them, written to their slots."""
    config = sampler_config(blueprint)
    longest = blueprint.config.prompt.max_prompt_tokens
    time = config.bucket(longest)
    rows = -(-config.prefill_rows // blueprint.row_shards) * blueprint.row_shards

    @functools.partial(jax.jit, donate_argnums=3)
    def prefill(params: Tree, tokens: jax.Array, lengths: jax.Array, cache: Cache, slots: jax.Array) -> Any:
        return models.prefill(blueprint.graph, params, tokens, lengths, cache, slots)

    @functools.partial(jax.jit, donate_argnums=3)
    def prefill_part(
        params: Tree, tokens: jax.Array, lengths: jax.Array, cache: Cache, slots: jax.Array, starts: jax.Array
    ) -> Any:
        return models.prefill_part(blueprint.graph, params, tokens, starts, lengths, cache, slots)

    numbers = blueprint.array((rows,), jnp.int32)
    arguments = (
        sampling_params(blueprint),
        blueprint.array((rows, time), jnp.int32),
        numbers,
        cache(blueprint),
        numbers,
    )
    beside = _beside_sampling(blueprint)
    if config.is_long(longest):
        words = f"{rows} parts of {time} tokens, of prompts of {longest}"
        return Program("prefill", words, prefill_part, (*arguments, numbers), {}, rows, time, beside)
    return Program("prefill", f"{rows} prompts of {time} tokens", prefill, arguments, {}, rows, time, beside)


def decode_program(blueprint: Blueprint) -> Program:
    """One token for every slot, and the distribution of the next."""
    slots = blueprint.config.sampling.slots

    @functools.partial(jax.jit, donate_argnums=3)
    def decode(params: Tree, tokens: jax.Array, positions: jax.Array, cache: Cache) -> Any:
        hidden, cache = models.decode_step(blueprint.graph, params, tokens, positions, cache)
        logits = models.logits(blueprint.graph, params, hidden)
        return jnp.argmax(logits, axis=-1), jax.nn.logsumexp(logits, axis=-1), cache

    numbers = blueprint.array((slots,), jnp.int32)
    arguments = (sampling_params(blueprint), numbers, numbers, cache(blueprint))
    words = f"{slots} slots of up to {cache_length(blueprint)} tokens"
    return Program("decode_step", words, decode, arguments, {}, slots, 1, _beside_sampling(blueprint))


def reference_bytes(blueprint: Blueprint) -> int:
    """A device, of the policy that rl compares with; the base of adapters is it, and stands there anyway. One that is
    refreshed is a copy of what is trained, beside the policy that rl began with."""
    moving = bytes_a_device(blueprint.trained) if blueprint.config.rl.reference_every else 0
    return moving + (bytes_a_device(blueprint.base) if blueprint.adapters is None else 0)


def _beside_sampling(blueprint: Blueprint) -> int:
    """What rl holds while it samples, and the sampler's programs do not take."""
    read = bytes_a_device(sampling_params(blueprint)) - copied_bytes(blueprint)
    held = bytes_a_device(blueprint.whole) - read + reference_bytes(blueprint)
    return held + (bytes_a_device(blueprint.rl_state()) if "rl" in blueprint.config.stages else 0)


def copied_bytes(blueprint: Blueprint, beside_update: bool = False) -> int:
    """A device, of the weights that the sampler does not read where the trainer keeps them; what is trained is copied,
    too, where it samples beside the update."""
    stacked = reads_stacked(blueprint.platform)
    dtype = jnp.dtype(blueprint.config.policy.compute_dtype)
    trained = {id(leaf) for leaf in jax.tree.leaves(blueprint.trained)} if beside_update else set()

    def is_copied(part: str, leaf: jax.ShapeDtypeStruct) -> bool:
        return leaf.dtype != dtype or id(leaf) in trained or (part == "layers" and not stacked)

    parts = blueprint.whole.items()
    copied = [leaf for part, tree in parts for leaf in jax.tree.leaves(tree) if is_copied(part, leaf)]
    return bytes_a_device(copied, dtype)


def sampling_params(blueprint: Blueprint) -> Tree:
    """What the sampler's programs take: one tree a layer unless they read stacked ones, in the compute dtype."""
    dtype = jnp.dtype(blueprint.config.policy.compute_dtype)

    def held(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    def of_one_layer(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        placed = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.P(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=placed)

    whole = jax.tree.map(held, blueprint.whole)
    if reads_stacked(blueprint.platform):
        return whole
    layers = [jax.tree.map(of_one_layer, whole["layers"]) for _ in range(blueprint.graph.config.num_layers)]
    return {**whole, "layers": layers}


def cache(blueprint: Blueprint) -> Cache:
    """The sampler's.

    Raises:
      ConfigError: the mesh does not divide it.
    """
    model, config = blueprint.graph.config, blueprint.config
    sizes = {
        "slots": config.sampling.slots,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "time": cache_length(blueprint),
    }
    dtype = jnp.dtype(config.policy.compute_dtype)
    try:
        key, value = (
            blueprint.array(tuple(sizes[axis] for axis in axes), dtype, axes) for axes in (KEY_AXES, VALUE_AXES)
        )
    except ValueError as error:
        raise ConfigError(f"config.sampling.slots is {config.sampling.slots}: {error}") from error
    return Cache([key] * model.num_layers, [value] * model.num_layers)


def cache_length(blueprint: Blueprint) -> int:
    """Tokens of a slot: the room of the longest prompt, and the longest action."""
    prompt = blueprint.config.prompt
    return sampler_config(blueprint).room(prompt.max_prompt_tokens) + prompt.max_action_tokens


def sampler_config(blueprint: Blueprint) -> SamplerConfig:
    """What decides on the sampler's shapes."""
    config = blueprint.config
    return SamplerConfig(config.prompt.max_action_tokens, slots=config.sampling.slots)


def row_tokens(blueprint: Blueprint, bucket: int = 64) -> int:
    """Tokens of a row of PPO's longest batch, as `ppo.make_batch` pads it."""
    prompt = blueprint.config.prompt
    return -(-(prompt.max_prompt_tokens + prompt.max_action_tokens) // bucket) * bucket


def pass_rows(blueprint: Blueprint, stage: str, rows: int, micro: int) -> int:
    """Rows of a pass of all devices.

    Raises:
      ConfigError: the mesh does not divide them.
    """
    shards, of_a_pass = blueprint.row_shards, micro or rows
    if of_a_pass % shards or rows % shards:
        raise ConfigError(
            f"config.{stage}: {rows} rows a step, {of_a_pass} a pass, and the mesh cuts rows into {shards} parts: make "
            f"config.{stage}.micro_batch a multiple of {shards}, or config.mesh.data * config.mesh.fsdp smaller"
        )
    return of_a_pass
