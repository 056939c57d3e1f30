"""Devices of a run: the mesh, its sharding rules, and placement of batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import jax
from jax.sharding import Mesh, NamedSharding

from mlagent_jax.parallelism import DEFAULT_RULES, make_mesh
from mlagent_jax.parallelism.sharding import Rules
from mlagent_jax.runtime import processes
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.policy import MeshConfig


@dataclasses.dataclass(frozen=True)
class Devices:
    """Mesh of a run and sharding of rows.

    Attributes:
      mesh: All devices of all processes.
      rules: Table from logical axis names to mesh axes.
    """

    mesh: Mesh
    rules: Rules

    @classmethod
    def of(cls, config: MeshConfig) -> Self:
        """Make the mesh of a config.

        Raises:
          ConfigError: The mesh does not fit the devices, or a rule names an unknown axis.
        """
        try:
            return cls(make_mesh(config.shape), DEFAULT_RULES.changed(config.rules))
        except ValueError as error:
            raise ConfigError(f"config.mesh: {error}") from error

    @property
    def row_shards(self) -> int:
        """Return the number of shards of a batch's rows."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules.mesh_axes("batch", self.mesh))

    def place(self, batch: Any, axis: int = 0) -> Any:
        """Copy a pytree of host arrays to the devices, `axis` of them, the rows, split over the mesh."""
        spec = self.rules.spec((*(None,) * axis, "batch"), self.mesh)
        return jax.tree.map(lambda array: processes.split(array, NamedSharding(self.mesh, spec)), batch)
