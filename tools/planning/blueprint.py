"""A run's arrays as `jax.ShapeDtypeStruct`s with shardings: the parameters, what is trained of them, the optimizer."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from mlagent_jax import models
from mlagent_jax.checkpoints import hub
from mlagent_jax.models import LoRA, lora
from mlagent_jax.optim.optimizer import HOST_MEMORY, abstract_state, make_optimizer
from mlagent_jax.parallelism import DEFAULT_RULES, Rules
from mlagent_jax.rl import ppo
from mlagent_jax.runs.shapes import shape_from_scratch
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling.layout import for_sampling
from mlagent_jax.settings.schema import Config

Tree = Any


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A policy on a mesh of devices, which need not be there, and how a config trains it."""

    config: Config
    mesh: Mesh | AbstractMesh
    graph: models.Graph
    """With adapters where the config has them."""
    base: Tree
    """The policy's parameters without adapters."""
    adapters: Tree | None
    platform: str = "cpu"
    """tpu, gpu or cpu."""

    @property
    def trained(self) -> Tree:
        """What the optimizer updates of the policy."""
        return self.base if self.adapters is None else self.adapters

    @property
    def whole(self) -> Tree:
        """All that the graph takes."""
        return self.base if self.adapters is None else lora.join(self.base, self.adapters)

    @property
    def sft_optimizer(self) -> optax.GradientTransformation:
        """As the sft stage makes it."""
        config = self.config.sft
        return make_optimizer(
            config.optimizer,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            keeps=self.config.optimizer,
        )

    @property
    def rl_optimizer(self) -> optax.GradientTransformation:
        """As the rl stage makes it."""
        return ppo.rl_optimizer(self.config.rl, self.config.optimizer)

    @property
    def rl_params(self) -> Tree:
        """What rl trains: policy and critic."""
        head = jax.eval_shape(lambda: ppo.init_critic(self.graph.config.hidden_size))
        critic = jax.tree.map(lambda leaf: self.array(leaf.shape, leaf.dtype), head)
        if self.config.rl.critic == "separate":
            critic["backbone"] = self.base
        return {"policy": self.trained, "critic": critic}

    def sft_state(self) -> Tree:
        """The sft optimizer's."""
        return abstract_state(self.sft_optimizer, self.trained, self.config.optimizer.placement)

    def rl_state(self) -> Tree:
        """The rl optimizer's."""
        return abstract_state(self.rl_optimizer, self.rl_params, self.config.optimizer.placement)

    @property
    def sampling_graph(self) -> models.Graph:
        """The graph with the sampler's sharding rules."""
        return for_sampling(self.graph, self.mesh, self.config.sampling.rules)

    def array(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        axes: tuple[str | None, ...] | None = None,
        rules: Rules | None = None,
    ) -> Any:
        """An array with these logical axes; without any, one on every device. `rules`: the graph's, unless given.

        Raises:
          ValueError: the mesh does not divide it.
        """
        spec = (rules or self.graph.rules).spec(axes or (None,) * len(shape), self.mesh, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    def parts(self, logical: str) -> int:
        """Into how many parts the mesh cuts an axis with this name."""
        return math.prod(self.mesh.shape[axis] for axis in self.graph.rules.mesh_axes(logical, self.mesh))

    @property
    def row_shards(self) -> int:
        """Into how many parts the mesh cuts the rows of a batch."""
        return self.parts("batch")


def draw(config: Config, model: models.ModelConfig, mesh: Mesh | AbstractMesh, platform: str) -> Blueprint:
    """The blueprint of a config for a model on a mesh of that platform (tpu, gpu or cpu).

    Raises:
      ConfigError: the mesh does not divide a dimension, or a kernel or an adapter's target cannot be.
    """
    policy = config.policy
    try:
        graph, base = models.abstract(
            model,
            dtype=jnp.dtype(policy.param_dtype),
            mesh=mesh,
            rules=DEFAULT_RULES.changed(config.mesh.rules),
            attention=policy.attention,
            platform=platform,
        )
        if not config.lora.rank:
            return Blueprint(config, mesh, graph, base, None, platform)
        graph = lora.adapted(graph, LoRA(**dataclasses.asdict(config.lora)))
        return Blueprint(config, mesh, graph, base, lora.abstract(graph, mesh), platform)
    except ValueError as error:
        raise ConfigError(f"config.mesh, config.policy or config.lora: {error}") from error


def read_model(config: Config) -> models.ModelConfig:
    """The shape of the policy: of `plan.model`, else of the checkpoint where it is local, else of one from scratch.

    Raises:
      ConfigError: neither can be read.
    """
    place = config.plan.model or config.policy.checkpoint
    if not place:
        return shape_from_scratch(config.policy, config.tokenizer.vocab_size)
    path = epath.Path(place)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file() and config.plan.model and hub.is_hub_id(place):
        try:
            path = hub.fetch_config(place)
        except FileNotFoundError as error:
            raise ConfigError(f"config.plan.model: {error}") from error
    if not path.is_file():
        raise ConfigError(
            f"{place!r} is no folder with a config.json: name one that is like the policy with "
            "--config.plan.model=FILE (configs/models/ has some)"
        )
    try:
        return models.ModelConfig.from_hf(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error


def bytes_a_device(tree: Tree, dtype: Any = None) -> int:
    """Of a tree's arrays in the memory of devices, or of copies of them in another dtype."""
    return _bytes([leaf for leaf in jax.tree.leaves(tree) if not _is_on_host(leaf)], dtype)


def host_bytes_a_device(tree: Tree) -> int:
    """Of a tree's arrays in the memory of hosts, a device's share."""
    return _bytes([leaf for leaf in jax.tree.leaves(tree) if _is_on_host(leaf)])


def _is_on_host(leaf: jax.ShapeDtypeStruct) -> bool:
    return leaf.sharding is not None and leaf.sharding.memory_kind == HOST_MEMORY


def _bytes(leaves: list[jax.ShapeDtypeStruct], dtype: Any = None) -> int:
    def one(leaf: jax.ShapeDtypeStruct) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        return math.prod(shape) * jnp.dtype(dtype or leaf.dtype).itemsize

    return sum(map(one, leaves))
