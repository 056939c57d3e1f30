"""Devices of a run: the mesh, the rules that lay arrays out on it, and batches of rows placed there."""

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
from mlagent_jax.settings.schema import MeshConfig


@dataclasses.dataclass(frozen=True)
class Devices:
    """The mesh of a run and how rows are split over it.

    Attributes:
      mesh: all devices of all processes.
      rules: table from logical axis names to mesh axes.
    """

    mesh: Mesh
    rules: Rules

    @classmethod
    def of(cls, config: MeshConfig) -> Self:
        """Make the mesh that a config asks for.

        Raises:
          ConfigError: the devices do not make that mesh, or a rule names what is not there.
        """
        try:
            return cls(make_mesh(config.shape), DEFAULT_RULES.changed(config.rules))
        except ValueError as error:
            raise ConfigError(f"config.mesh: {error}") from error

    @property
    def row_shards(self) -> int:
        """Number of shards that the mesh cuts a batch's rows into."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules.mesh_axes("batch", self.mesh))

    @property
    def _row_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, self.rules.spec(("batch",), self.mesh))

    def place(self, batch: Any) -> Any:
        """Copy a pytree of host arrays [rows, ...] to the devices, split by rows."""
        sharding = self._row_sharding
        return jax.tree.map(lambda array: processes.split(array, sharding), batch)

    def rows(self, batch: Any, rows: np.ndarray) -> Any:
        """Select rows of a batch that is on the devices; the selection is split over them in turn.

        Args:
          batch: pytree of arrays [all rows, ...].
          rows: their indices, [rows].
        """
        return _select(batch, rows, self._row_sharding)


@functools.partial(jax.jit, static_argnums=2)
def _select(batch: Any, rows: jax.Array, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array[rows], sharding), batch)
