"""Bytes a device by phase of a run, before anything is allocated, and what would make them fit.

Parameters, optimizer, gradients and cache are exact: shapes, dtypes and shardings of the very trees that a run makes.
Activations are an estimate, from what a layer makes and what each remat policy keeps of it (Korthikanti et al. 2022
count the same way); `tools/plan.py --compile` gives the compiler's figure beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mlagent_jax.models.attention import block_size
from mlagent_jax.models.cache import KEY_BLOCK
from mlagent_jax.parallelism.slices import GIB, Slice
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config
from tools.planning import programs
from tools.planning.blueprint import Blueprint, Tree, bytes_a_device, host_bytes_a_device

Redraw = Callable[[Config], Blueprint]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run in which the same things are held."""

    name: str
    stages: tuple[str, ...]
    """Of the config, that go through it."""
    parts: dict[str, int]
    """Bytes a device by what they are for."""
    host: int = 0
    """Bytes of the host's memory that a device's share of the optimizer takes."""

    @property
    def total(self) -> int:
        """Bytes a device."""
        return sum(self.parts.values())


def phases(blueprint: Blueprint) -> list[Phase]:
    """All of a run.

    Raises:
      ConfigError: the mesh does not divide a batch or the cache.
    """
    config = blueprint.config
    base, adapters = bytes_a_device(blueprint.base), bytes_a_device(blueprint.adapters or ())
    weights = {"parameters": base + adapters}
    reference = {"reference policy": programs.reference_bytes(blueprint)}
    rows = programs.pass_rows(blueprint, "sft", config.sft.batch_size, config.sft.micro_batch)
    sft_state, rl_state = blueprint.sft_state(), blueprint.rl_state()
    sft = {
        "optimizer": bytes_a_device(sft_state),
        "gradients": _gradients(blueprint, rows < config.sft.batch_size),
        "activations": activations(blueprint, rows, config.sft.row_tokens, config.sft.row_tokens),
    }
    batch = config.rl.states * config.rl.samples // config.rl.minibatches
    rows = programs.pass_rows(blueprint, "rl", batch, programs.rl_config(blueprint, batch).micro_batch)
    optimizer = {"optimizer": bytes_a_device(rl_state)}
    update = {
        "gradients": _gradients(blueprint, rows < batch),
        "activations": activations(blueprint, rows, programs.row_tokens(blueprint), config.prompt.max_action_tokens),
    }
    sampling = {
        "sampling copy": programs.copied_bytes(blueprint),
        "KV cache": bytes_a_device(programs.caches(blueprint)),
        "activations": _prefill_activations(blueprint),
    }
    if config.rl.sample_ahead and config.rl.max_staleness:
        update |= {"sampling copy": programs.copied_bytes(blueprint, True), "KV cache": sampling["KV cache"]}
    of_sft, of_rl = host_bytes_a_device(sft_state), host_bytes_a_device(rl_state)
    return [
        Phase("sft step", ("sft",), weights | sft | _visiting(sft_state, sft), of_sft),
        Phase("rl update", ("rl",), weights | reference | optimizer | update | _visiting(rl_state, update), of_rl),
        Phase("rl sampling", ("rl",), weights | reference | optimizer | sampling, of_rl),
        Phase("evaluation", ("evaluate",), weights | sampling),
    ]


def _visiting(state: Tree, step: dict[str, int]) -> dict[str, int]:
    """Moments that come from the host for the update, one parameter's at a time, as they were and as they will be, when
    the activations are gone: what those of the largest take beyond the activations' place."""
    largest = sorted(map(host_bytes_a_device, jax.tree.leaves(state)))[-2:]
    return {"moments for the update": max(0, 2 * sum(largest) - step["activations"])} if any(largest) else {}


def _gradients(blueprint: Blueprint, accumulated: bool) -> int:
    """Of one pass in the dtype of the parameters, beside the sum over passes in float32 where there are several."""
    own = bytes_a_device(blueprint.trained)
    return own + (bytes_a_device(blueprint.trained, jnp.float32) if accumulated else 0)


def activations(blueprint: Blueprint, rows: int, time: int, predicted: int) -> int:
    """Estimate for a pass of `rows` rows of `time` tokens, `predicted` positions of which meet the vocabulary."""
    model, policy = blueprint.graph.config, blueprint.config.policy
    size, parts = jnp.dtype(policy.compute_dtype).itemsize, blueprint.parts
    tokens = rows // blueprint.row_shards * time
    hidden, inner = model.hidden_size, model.intermediate_size / parts("mlp")
    heads = model.num_heads * model.head_dim / parts("heads")
    kv_heads = model.num_kv_heads * model.head_dim / parts("kv_heads")
    kept = {
        "full": hidden,
        "dots": 3 * hidden + 2 * heads + 2 * kv_heads + 2 * inner,
        "none": 8 * hidden + 4 * heads + 4 * kv_heads + 5 * inner,
    }[policy.remat]
    # One layer in its backward pass: its activations, and gradients of most of them.
    one_layer = 8 * hidden + 6 * heads + 6 * kv_heads + 6 * inner
    scores = 0.0
    if blueprint.graph.attention == "xla":  # the others hold none
        scores = 3 * 4 * rows // blueprint.row_shards * model.num_heads / parts("heads") * block_size(time) * time
    # Logits, probabilities and their gradients of one chunk.
    logits = 4 * 4 * min(rows // blueprint.row_shards * predicted * model.vocab_size / parts("vocab"), 2**25)
    around = 4 * tokens * hidden * size
    return int(tokens * size * (model.num_layers * kept + one_layer) + scores + logits + around) + _gathered(blueprint)


def _gathered(blueprint: Blueprint) -> int:
    """What a device has of the weights whose axis `embed` is split while it uses them: two layers' (one ahead) in the
    compute dtype, the gradient of one, the embedding whole, and the output projection with its gradient where it has
    one, in their own dtype."""
    if blueprint.parts("embed") == 1:
        return 0
    model, policy = blueprint.graph.config, blueprint.config.policy
    size, own = jnp.dtype(policy.compute_dtype).itemsize, jnp.dtype(policy.param_dtype).itemsize
    layer = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(blueprint.base["layers"]))
    projection = own * (2 if blueprint.adapters is None else 1)
    vocabulary = model.vocab_size * model.hidden_size
    of_layers, of_vocabulary = 3 * layer * size, vocabulary * (size + projection)
    return int(of_layers / blueprint.parts("mlp") + of_vocabulary / blueprint.parts("vocab"))


def _prefill_activations(blueprint: Blueprint) -> int:
    """Forward alone: one layer's."""
    program = programs.prefill_program(blueprint)
    model, heads = blueprint.graph.config, blueprint.parts("heads")
    size = jnp.dtype(blueprint.config.policy.compute_dtype).itemsize
    rows = program.rows // blueprint.row_shards
    inner = 3 * model.intermediate_size / blueprint.parts("mlp") + 3 * model.num_heads * model.head_dim / heads
    width = 3 * model.hidden_size + inner
    scores = 0.0
    # Keys and values of all layers stand beside the cache until they are written to it.
    held = 2 * model.num_layers * model.num_kv_heads * model.head_dim / blueprint.parts("kv_heads")
    if programs.sampler_config(blueprint).is_long(
        blueprint.config.prompt.max_prompt_tokens
    ):  # in parts, layer by layer
        scores = 2 * 4 * rows * model.num_heads / heads * program.time * (KEY_BLOCK + model.head_dim)
        held = 0.0
    elif blueprint.graph.attention == "xla":
        scores = 2 * 4 * rows * model.num_heads / heads * block_size(program.time) * program.time
    return int(rows * program.time * size * (width + held) + scores) + _gathered(blueprint)


def misfits(found: list[Phase], config: Config, slice_: Slice) -> list[Phase]:
    """Phases of the config's stages that take more than a device, or its host, has."""

    def fits(phase: Phase) -> bool:
        return phase.total <= slice_.usable_bytes and not _is_beyond_host(phase, slice_)

    return [phase for phase in found if set(phase.stages) & set(config.stages) and not fits(phase)]


def _is_beyond_host(phase: Phase, slice_: Slice) -> bool:
    return bool(slice_.host_gib) and phase.host * slice_.devices_a_host > slice_.host_gib * GIB


def explain(phase: Phase, slice_: Slice) -> str:
    """What does not fit, and what most of it is."""
    if _is_beyond_host(phase, slice_):
        return (
            f"{phase.name} keeps {phase.host * slice_.devices_a_host / GIB:.1f} GiB of the optimizer on a host, a host "
            f"of {slice_.name} has {slice_.host_gib:.0f}"
        )
    most = sorted(phase.parts.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in most if size)
    return (
        f"{phase.name} takes {phase.total / GIB:.1f} GiB a device, {slice_.name} has {slice_.usable_gib:.1f}: "
        f"{parts} GiB"
    )


def remedy(config: Config, redraw: Redraw, slice_: Slice) -> list[str]:
    """The first settings, of those that change least of what is learned, under which every stage fits; [] if none."""
    for overrides in _candidates(config, redraw(config).row_shards):
        changed = _with(config, overrides)
        try:
            fits = not misfits(phases(redraw(changed)), changed, slice_)
        except ConfigError:
            continue
        if fits:
            return [f"--config.{path}={value}" for path, value in overrides.items()]
    return []


def _candidates(config: Config, shards: int) -> Iterator[dict[str, Any]]:
    """Settings to try, each with what came before it."""
    tried: dict[str, Any] = {}
    rows = config.rl.states * config.rl.samples // config.rl.minibatches
    ahead = config.rl.sample_ahead and config.rl.max_staleness
    steps: list[dict[str, Any]] = [{"rl.sample_ahead": False} if ahead else {}, {"policy.remat": "full"}]
    for size in (32, 16, 8, 4, 2, 1):
        smaller = {}
        for stage, total in (("sft", config.sft.batch_size), ("rl", rows)):
            now = getattr(config, stage).micro_batch or total
            if size < now and total % size == 0 and size % shards == 0:
                smaller[f"{stage}.micro_batch"] = size
        steps.append(smaller)
    slots = config.sampling.slots
    steps += [{"sampling.slots": slots // part} for part in (2, 4, 8) if slots % (part * shards) == 0]
    steps += [{"optimizer.placement": "host"}, {"optimizer.placement": "device", "optimizer.moments": "bfloat16"}]
    steps += [{"optimizer.placement": "host"}, {"optimizer.placement": "device", "optimizer.moments": "factored"}]
    steps += [{"optimizer.moments": "float32", "policy.param_dtype": "bfloat16", "lora.rank": 32}]
    for step in steps:
        if step:
            tried |= step
            yield dict(tried)


def _with(config: Config, overrides: dict[str, Any]) -> Config:
    for path, value in overrides.items():
        section, field = path.split(".")
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )
    return config
