"""The architecture of a config's policy, and checks of its sizes against mesh and model before any work."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
from etils import epath

from mlagent_jax import models
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling.layout import sampling_rules
from mlagent_jax.settings.policy import PolicyConfig
from mlagent_jax.settings.schema import Config

_SAMPLING = {"rl", "evaluate"}


def shape_from_scratch(config: PolicyConfig, vocab_size: int) -> models.ModelConfig:
    """Return the architecture of a policy without a checkpoint."""
    return models.ModelConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.hidden_size // config.num_heads,
        intermediate_size=config.intermediate_size,
        model_type="qwen2",
        attention_bias=True,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        dtype=config.param_dtype,
    )


def check_shapes(config: Config, devices: Devices) -> None:
    """Check batches, micro-batches, slots and lengths of the config's stages against mesh and model.

    A model that is not on this host yet (a hub id, another run's checkpoint) is checked when its stage loads it.

    Raises:
      ConfigError: A size does not fit; the message names the field and sizes that would.
    """
    stages = set(config.stages)
    if "sft" in stages:
        _check_rows(config.sft.batch_size, config.sft.micro_batch, devices.row_shards)
        check_packing(config)
    model = _model(config)
    if model is None or not stages & {"sft", *_SAMPLING}:
        return
    longest = config.prompt.max_prompt_tokens + config.prompt.max_action_tokens
    if longest > (most := _positions(model)):
        raise ConfigError(
            f"config.prompt.max_prompt_tokens and max_action_tokens are {config.prompt.max_prompt_tokens} and "
            f"{config.prompt.max_action_tokens}; the policy knows {most} positions: together at most that"
        )
    try:
        models.abstract(
            model,
            dtype=jnp.dtype(config.policy.param_dtype),
            mesh=devices.mesh,
            rules=devices.rules,
            attention=config.policy.attention,
        )
    except ValueError as error:
        raise ConfigError(f"config.mesh or config.policy: {error}") from error
    if stages & _SAMPLING:
        _check_slots(config, devices, model)


def check_packing(config: Config) -> None:
    """Check that the attention kernel of sft can keep the samples of a row apart.

    Raises:
      ConfigError: It cannot.
    """
    if config.policy.attention == "cudnn" and config.sft.packing:
        raise ConfigError(
            "config.policy.attention is 'cudnn', which cannot keep the samples of a packed row apart: set "
            "config.sft.packing=False, or config.policy.attention=xla"
        )


def _check_rows(rows: int, micro: int, shards: int) -> None:
    """Check that the mesh divides the rows of an optimizer step of sft, and those of one pass; rl fills its rows up."""
    for what, count in (("an optimizer step", rows), ("a pass (micro_batch)", micro or rows)):
        if count % shards:
            raise ConfigError(
                f"config.sft: {what} has {count} rows, and the mesh cuts rows into {shards} parts "
                f"(config.mesh.data * config.mesh.fsdp): make it a multiple of {shards}, or those smaller"
            )


def _check_slots(config: Config, devices: Devices, model: models.ModelConfig) -> None:
    """Check that the sampler's layout divides its slots."""
    if devices.mesh.size == 1:
        return
    try:
        rules = sampling_rules(model, devices.mesh, devices.rules, config.sampling.rules)
    except ValueError as error:
        raise ConfigError(f"config.sampling.rules: {error}") from error
    parts = math.prod(devices.mesh.shape[axis] for axis in rules.mesh_axes("slots", devices.mesh))
    if config.sampling.slots % parts:
        raise ConfigError(
            f"config.sampling.slots is {config.sampling.slots}; the sampler's layout cuts slots into {parts} parts: "
            f"make it a multiple of {parts}"
        )


def _positions(model: models.ModelConfig) -> int:
    """Return the most positions that the rotary embeddings were made for, extended by their scaling."""
    scaling = model.rope_scaling
    extended = (scaling.original_max_position_embeddings or 0) * scaling.factor if scaling.kind != "default" else 0
    return max(model.max_position_embeddings, int(extended))


def _model(config: Config) -> models.ModelConfig | None:
    """Return the policy's architecture where this host knows it already, else None."""
    if not config.policy.checkpoint:
        return shape_from_scratch(config.policy, config.tokenizer.vocab_size)
    path = epath.Path(config.policy.checkpoint) / "config.json"
    if not path.exists():
        return None
    try:
        return models.ModelConfig.from_hf(json.loads(path.read_text()))
    except ValueError as error:
        raise ConfigError(f"config.policy.checkpoint is {config.policy.checkpoint!r}: {error}") from error
