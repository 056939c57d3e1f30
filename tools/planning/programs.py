"""The steps of a run as programs over abstract arrays, to be compiled for devices that are not there.

They are the programs that the stages and the sampler's engine run: `sft_step`, `ppo_step`, `prefill`, `decode_step`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mlagent_jax.models import Cache
from mlagent_jax.models.cache import KEY_AXES, VALUE_AXES
from mlagent_jax.models.packing import Shapes, decisions_of
from mlagent_jax.rl import ppo
from mlagent_jax.rl.rows import Passes, longest_block
from mlagent_jax.runs.shapes import check_packing
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling import engine
from mlagent_jax.sampling.config import Distribution, SamplerConfig
from mlagent_jax.sampling.engine import SlotState
from mlagent_jax.sampling.layout import placement
from mlagent_jax.sampling.rows import Rows
from mlagent_jax.sampling.weights import reads_stacked
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

    @property
    def arrays(self) -> list[jax.ShapeDtypeStruct]:
        """Its arguments but for the static ones."""
        return [leaf for leaf in jax.tree.leaves(self.arguments) if isinstance(leaf, jax.ShapeDtypeStruct)]


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
    """One optimizer step of supervised fine-tuning.

    Raises:
      ConfigError: the mesh does not divide its rows, or the attention kernel cannot keep packed samples apart.
    """
    if "sft" in blueprint.config.stages:
        check_packing(blueprint.config)
    config = blueprint.config.sft
    rows, time = config.batch_size, config.row_tokens
    micro = pass_rows(blueprint, rows, config.micro_batch)

    def batch(dtype: Any) -> jax.ShapeDtypeStruct:
        return blueprint.array((rows, time), dtype, ROWS_AXES)

    packed = {name: batch(jnp.int32) for name in ("tokens", "targets", "segment_ids", "prompt_ids", "positions")}
    static = {
        "graph": blueprint.graph,
        "optimizer": blueprint.sft_optimizer,
        "remat": blueprint.config.policy.remat,
        "compute_dtype": blueprint.config.policy.compute_dtype,
        "micro_rows": config.micro_batch,
        "single": _is_single(blueprint),
        "base": None if blueprint.adapters is None else blueprint.base,
    }
    arguments = (blueprint.trained, blueprint.sft_state(), packed | {"mask": batch(jnp.bool_)})
    words = f"{rows} rows of {time} tokens, {micro} at a time"
    return Program("sft_step", words, sft_step, arguments, static, micro, time)


def ppo_program(blueprint: Blueprint) -> Program:
    """One optimizer step of PPO, on one mini-batch: each state's prompt with its actions is a row, the longest it can
    be; with an attention kernel without segments, each action has a row of its own."""
    config = blueprint.config
    size = config.rl.states * config.rl.samples
    action, time = config.prompt.max_action_tokens, row_tokens(blueprint)
    rows, micro = ppo_rows(blueprint)
    decisions = rows_decisions(blueprint)

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return blueprint.array((size, *shape), dtype)

    def packed(length: int) -> jax.ShapeDtypeStruct:
        return blueprint.array((rows // micro, micro, length), jnp.int32, (None, *ROWS_AXES))

    sampled = ppo.Batch(
        mask=array(action, dtype=jnp.bool_),
        behaviour_log_probs=array(action),
        rewards=array(),
        groups=array(dtype=jnp.int32),
        weights=array(),
        baselines=array(),
    )
    targets = ppo.Targets(*(array(action) for _ in dataclasses.fields(ppo.Targets)))
    single = _is_single(blueprint)
    passes = Passes(*(packed(time) for _ in range(4)), *(packed(decisions) for _ in range(3)), single=single)
    policy = config.policy
    static = {
        "model": ppo.Model(blueprint.graph, config.sampling.temperature, policy.compute_dtype, policy.remat),
        "optimizer": blueprint.rl_optimizer,
        "config": config.rl,
        "base": None if blueprint.adapters is None else blueprint.base,
    }
    scalar = blueprint.array((), jnp.float32)
    arguments = (blueprint.rl_params, blueprint.rl_state(), sampled, targets, passes, scalar)
    actions = "one action" if single else f"{config.rl.samples} actions"
    words = f"{rows} rows of {time} tokens, a prompt with {actions} each, {micro} at a time"
    return Program("ppo_step", words, ppo.ppo_step, arguments, static, micro, time, reference_bytes(blueprint))


def ppo_rows(blueprint: Blueprint) -> tuple[int, int]:
    """Rows of a mini-batch in which every state, or every action (see `ppo_program`), has a row, filled up to whole
    passes; and rows of a pass."""
    config = blueprint.config.rl
    micro = blueprint.row_shards * max(1, config.micro_tokens // row_tokens(blueprint))
    rows = config.states * (config.samples if _is_single(blueprint) else 1)
    rows = -(-rows // config.minibatches)
    return -(-rows // micro) * micro, micro


def rows_decisions(blueprint: Blueprint) -> int:
    """Positions of a row at which tokens of actions are chosen, with padding."""
    actions = 1 if _is_single(blueprint) else blueprint.config.rl.samples
    return decisions_of(row_tokens(blueprint), actions * blueprint.config.prompt.max_action_tokens)


def prefill_program(blueprint: Blueprint) -> Program:
    """The engine's prefill: some of the longest prompts, or parts of them, written to their slots."""
    config = sampler_config(blueprint)
    longest = blueprint.config.prompt.max_prompt_tokens
    time = config.bucket(longest)
    shards = sampling_parts(blueprint, "batch")
    rows = -(-config.prefill_rows // shards) * shards
    numbers = blueprint.array((rows,), jnp.int32)
    params, state = sampling_params(blueprint), slot_state(blueprint)
    tokens = blueprint.array((rows, time), jnp.int32)
    graph, beside = blueprint.sampling_graph, _beside_sampling(blueprint)
    if config.is_long(longest):
        words = f"{rows} parts of {time} tokens, of prompts of {longest}"
        arguments = (graph, params, state, tokens, numbers, numbers, numbers)
        return Program("prefill", words, engine.prefill_parts, arguments, {}, rows, time, beside)
    words = f"{rows} prompts of {time} tokens"
    arguments = (graph, params, state, tokens, numbers, numbers)
    return Program("prefill", words, engine.prefill_prompts, arguments, {}, rows, time, beside)


def decode_program(blueprint: Blueprint) -> Program:
    """The engine's decode, for one token of every slot."""
    config, slots = sampler_config(blueprint), blueprint.config.sampling.slots
    awaited, taken = blueprint.array((), jnp.bool_), blueprint.array((slots,), jnp.int32)
    parts, rules = sampling_parts(blueprint, "slots"), blueprint.sampling_graph.rules
    state = slot_state(blueprint)
    groups = jax.tree.map(
        lambda held: blueprint.array(held.shape, jnp.int32, ("slots", None)[: held.ndim], rules),
        Rows(config, parts).groups([]),
    )
    arguments = (blueprint.sampling_graph, config, sampling_params(blueprint), state, groups)
    arguments += (awaited, taken)
    words = (
        f"{slots} slots of up to {config.max_new_tokens} tokens after {config.prompt_rows(parts)} prompts of up to "
        f"{prompt_room(blueprint)}"
    )
    return Program("decode_step", words, engine.decode, arguments, {}, slots, 1, _beside_sampling(blueprint))


def slot_state(blueprint: Blueprint) -> SlotState:
    """The engine's state of all slots, its cache laid out as the sampler does.

    Raises:
      ConfigError: the mesh does not divide the slots.
    """
    graph, config = blueprint.sampling_graph, sampler_config(blueprint)
    params, room = sampling_params(blueprint), prompt_room(blueprint)
    state = jax.eval_shape(lambda params: engine.empty_slots(graph, config, room, params), params)
    whole = NamedSharding(blueprint.mesh, jax.P())
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), state)
    prompts, cache = caches(blueprint)
    rows = (prompts.values[0].shape[0], graph.config.hidden_size)
    hidden = blueprint.array(rows, state.prompt_hidden.dtype)
    return dataclasses.replace(state, prompts=prompts, cache=cache, prompt_hidden=hidden)


def sampling_parts(blueprint: Blueprint, logical: str) -> int:
    """Into how many parts the sampler's rules cut an axis with this name."""
    rules, mesh = blueprint.sampling_graph.rules, blueprint.mesh
    return math.prod(mesh.shape[axis] for axis in rules.mesh_axes(logical, mesh))


def reference_bytes(blueprint: Blueprint) -> int:
    """A device, of the policy that rl compares with: the base of adapters, which stands there anyway; else a copy in
    the compute dtype where that is smaller. One that is refreshed is a copy of what is trained."""
    if blueprint.config.rl.reference_every:
        return bytes_a_device(blueprint.trained)
    if blueprint.adapters is not None:
        return 0
    own = bytes_a_device(blueprint.base)
    return min(own, bytes_a_device(blueprint.base, jnp.dtype(blueprint.config.policy.compute_dtype)))


def _beside_sampling(blueprint: Blueprint) -> int:
    """What rl holds while it samples, and the sampler's programs do not take."""
    read = bytes_a_device(sampling_params(blueprint)) - copied_bytes(blueprint)
    held = bytes_a_device(blueprint.whole) - read + reference_bytes(blueprint)
    return held + (bytes_a_device(blueprint.rl_state()) if "rl" in blueprint.config.stages else 0)


def copied_bytes(blueprint: Blueprint, beside_update: bool = False) -> int:
    """A device, of the weights that the sampler does not read where the trainer keeps them.

    Those are the ones of another dtype or layout, stacked ones where layers are read apart, and what is trained where
    it samples beside the update.
    """
    stacked = reads_stacked(blueprint.platform)
    dtype = jnp.dtype(blueprint.config.policy.compute_dtype)
    trained = {id(leaf) for leaf in jax.tree.leaves(blueprint.trained)} if beside_update else set()

    def copy(part: str, leaf: jax.ShapeDtypeStruct, target: NamedSharding) -> jax.ShapeDtypeStruct | None:
        stays = leaf.dtype == dtype and leaf.sharding.is_equivalent_to(target, len(leaf.shape))
        if stays and id(leaf) not in trained and (part != "layers" or stacked):
            return None
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=target)

    targets = sampling_placement(blueprint)
    copies = [
        jax.tree.map(lambda *two, part=part: copy(part, *two), tree, targets[part])
        for part, tree in blueprint.whole.items()
    ]
    return bytes_a_device([leaf for leaf in jax.tree.leaves(copies) if leaf is not None])


def sampling_placement(blueprint: Blueprint) -> Tree:
    """The sharding of every weight as the sampler lays it out, layers stacked."""
    if blueprint.mesh.size == 1:
        return jax.tree.map(lambda leaf: leaf.sharding, blueprint.whole)
    return placement(blueprint.sampling_graph, blueprint.mesh)


def sampling_params(blueprint: Blueprint) -> Tree:
    """What the sampler's programs take: one tree a layer unless they read stacked ones, in its dtype and layout."""
    dtype = jnp.dtype(blueprint.config.policy.compute_dtype)

    def held(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    def of_one_layer(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        placed = NamedSharding(leaf.sharding.mesh, jax.P(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=placed)

    whole = jax.tree.map(held, blueprint.whole, sampling_placement(blueprint))
    if reads_stacked(blueprint.platform):
        return whole
    layers = [jax.tree.map(of_one_layer, whole["layers"]) for _ in range(blueprint.graph.config.num_layers)]
    return {**whole, "layers": layers}


def caches(blueprint: Blueprint) -> tuple[Cache, Cache]:
    """The sampler's, of prompts and of what follows them.

    Raises:
      ConfigError: the mesh does not divide them.
    """
    config, settings = blueprint.config, sampler_config(blueprint)
    rows = settings.prompt_rows(sampling_parts(blueprint, "slots"))
    try:
        return _cache(blueprint, rows, prompt_room(blueprint)), _cache(
            blueprint, settings.slots, settings.max_new_tokens
        )
    except ValueError as error:
        raise ConfigError(f"config.sampling.slots is {config.sampling.slots}: {error}") from error


def _cache(blueprint: Blueprint, rows: int, length: int) -> Cache:
    model = blueprint.graph.config
    sizes = {"slots": rows, "kv_heads": model.num_kv_heads, "head_dim": model.head_dim, "time": length}
    dtype, rules = jnp.dtype(blueprint.config.policy.compute_dtype), blueprint.sampling_graph.rules
    key, value = (
        blueprint.array(tuple(sizes[axis] for axis in axes), dtype, axes, rules) for axes in (KEY_AXES, VALUE_AXES)
    )
    return Cache([key] * model.num_layers, [value] * model.num_layers)


def prompt_room(blueprint: Blueprint) -> int:
    """Tokens of a row of prompts: the room of the longest."""
    return sampler_config(blueprint).room(blueprint.config.prompt.max_prompt_tokens)


def sampler_config(blueprint: Blueprint) -> SamplerConfig:
    """What decides on the sampler's shapes."""
    config = blueprint.config
    sampling = config.sampling
    return SamplerConfig(
        config.prompt.max_action_tokens,
        Distribution(sampling.temperature, sampling.top_k, sampling.top_p),
        slots=sampling.slots,
        samples=min(config.rl.samples, max(1, sampling.slots // sampling_parts(blueprint, "slots"))),
        steps_per_call=1,  # what stands in a plan is of one token
        compute_dtype=config.policy.compute_dtype,
    )


def row_tokens(blueprint: Blueprint) -> int:
    """Tokens of PPO's longest row: the longest prompt with all of its actions, as `models.packing` pads it."""
    return Shapes(longest_block(blueprint.config, single=_is_single(blueprint)), 0).known[0].time


def _is_single(blueprint: Blueprint) -> bool:
    """Whether the attention kernel takes no segments, so that each row holds one action."""
    return blueprint.graph.attention == "cudnn"


def pass_rows(blueprint: Blueprint, rows: int, micro: int) -> int:
    """Rows of a pass of all devices in sft.

    Raises:
      ConfigError: the mesh does not divide them.
    """
    shards, of_a_pass = blueprint.row_shards, micro or rows
    if of_a_pass % shards or rows % shards:
        raise ConfigError(
            f"config.sft: {rows} rows a step, {of_a_pass} a pass, and the mesh cuts rows into {shards} parts: make "
            f"config.sft.micro_batch a multiple of {shards}, or config.mesh.data * config.mesh.fsdp smaller"
        )
    return of_a_pass
