"""Devices of a run: the mesh, its sharding rules, and placement of batches."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Self

import jax
import numpy as np
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

    @property
    def _row_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, self.rules.spec(("batch",), self.mesh))

    def place(self, batch: Any) -> Any:
        """Copy a pytree of host arrays [rows, ...] to the devices, sharded by rows."""
        sharding = self._row_sharding
        return jax.tree.map(lambda array: processes.split(array, sharding), batch)

    def rows(self, batch: Any, rows: np.ndarray) -> Any:
        """Select rows of a batch on the devices; the selection is sharded by rows again.

        Args:
          batch: Pytree of arrays [all rows, ...].
          rows: Indices of the rows, [rows].
        """
        return _select(batch, rows, self._row_sharding)


@functools.partial(jax.jit, static_argnums=2)
def _select(batch: Any, rows: jax.Array, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array[rows], sharding), batch)
