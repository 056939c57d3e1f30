"""Weights as decoding reads them: one tree per layer, in the compute dtype.

    Params (a trainer's arrays) -> Preparation -> Weights

Arrays already in this layout are used without a copy. Other dtypes are cast. A trainer stacks its layers to scan over
them. On TPUs stacked arrays are used without a copy too, because the compiler reads one layer within the product.
Elsewhere they are split by layer: on a CPU, a program that splits them itself needs as much memory, and its decoding
takes 1.4 times as long.

A copy is made once per array, however many batches use it. A new policy version consists of new arrays, which are
copied on first use; copies of arrays that no longer exist are freed.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mlagent_jax.models import Graph, Params
from mlagent_jax.sampling.layout import mesh_of, placement

_Path = tuple[Any, ...]


def reads_stacked(platform: str) -> bool:
    """Return whether programs for this platform (tpu, gpu or cpu) read a layer of a stacked array without a copy.

    Compiled programs for TPUs confirm it: they have no temporary for a layer's weights, each product slices its own.
    """
    return platform == "tpu"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters in the form that the sampler's programs take."""

    params: Params
    """Parameters; `layers` is a list with one tree per layer, or stacked if the platform reads that in place."""


@dataclasses.dataclass(frozen=True)
class _Made:
    source: weakref.ref[jax.Array]
    result: jax.Array | tuple[jax.Array, ...]
    """Copy of the array; of a stacked array, one copy per layer."""


class Preparation:
    """Prepares parameters for decoding, and keeps the copy of each array until `release`.

    Args:
        dtype: Compute dtype of decoding; None: the dtype of each array.
        stacked: Whether stacked layers are used without a copy; None: `reads_stacked` of their platform.
        graph: Graph of the sampler, whose rules decide the layout of weights on a mesh; None: layouts are kept.
    """

    def __init__(self, dtype: str | None = None, stacked: bool | None = None, graph: Graph | None = None) -> None:
        self._dtype = None if dtype is None else jnp.dtype(dtype)
        self._stacked = stacked
        self._graph = graph
        self._layout: dict[_Path, NamedSharding] = {}
        self.moved_bytes = 0
        """Bytes of the weights that the last call cast, split or resharded."""
        self.moved_so_far = 0, 0.0
        """Bytes as in `moved_bytes`, and seconds, summed over all calls."""
        self._made: dict[int, _Made] = {}  # by the `id` of the source array
        self._lock = threading.Lock()

    def __call__(self, params: Params | Weights, *, donated: Params | None = None) -> Weights:
        """Return the weights of `params`.

        Args:
            params: Parameters in the tree of `models.create`, with stacked layers or a list of one tree per layer.
                `Weights` are returned unchanged.
            donated: Tree of arrays that will be donated to a program while the weights are in use. Arrays of `params`
                among them are copied. None: no array is donated.
        """
        if isinstance(params, Weights):
            return params
        with self._lock:
            self._lay_out(params)
            return self._prepare(params, {id(leaf) for leaf in jax.tree.leaves(donated)})

    def copied_bytes(self, params: Params) -> int:
        """Return the bytes of the copies that `params` still need, in addition to `params` and existing copies."""
        self._lay_out(params)
        return sum(
            leaf.size * self._dtype_of(leaf).itemsize
            for path, leaf in _flat(params).items()
            if not self._fits(path, leaf) and not self._has(leaf)
        )

    def release(self) -> None:
        """Release all copies, except those that `Weights` in use refer to."""
        with self._lock:
            self._made = {}

    def _prepare(self, params: Params, donated: set[int]) -> Weights:
        flat = _flat(params)
        alive = {id(leaf) for leaf in flat.values()}
        self._made = {key: made for key, made in self._made.items() if key in alive and made.source() is not None}
        missing = {
            path: leaf
            for path, leaf in flat.items()
            if not self._has(leaf) and (id(leaf) in donated or not self._fits(path, leaf))
        }
        seconds = 0.0
        if missing:
            stacked = {path: leaf for path, leaf in missing.items() if self._is_cut(path, leaf)}
            single = {path: leaf for path, leaf in missing.items() if not self._is_cut(path, leaf)}
            placed = None
            if self._layout:
                layers = [tuple([self._of_one_layer(path)] * len(leaf)) for path, leaf in stacked.items()]
                placed = (layers, [self._target(path) for path in single])
            began = time.perf_counter()
            made = _copies(self._dtype, placed)(list(stacked.values()), list(single.values()))
            jax.block_until_ready(made)
            seconds = time.perf_counter() - began
            for leaf, result in zip((*stacked.values(), *single.values()), (*made[0], *made[1]), strict=True):
                self._made[id(leaf)] = _Made(weakref.ref(leaf), result)
        self.moved_bytes = sum(leaf.size * self._dtype_of(leaf).itemsize for leaf in missing.values())
        self.moved_so_far = self.moved_so_far[0] + self.moved_bytes, self.moved_so_far[1] + seconds
        held = {path: self._made[id(leaf)].result if self._has(leaf) else leaf for path, leaf in flat.items()}
        return Weights(_unflat(held))

    def _has(self, leaf: jax.Array) -> bool:
        made = self._made.get(id(leaf))
        return made is not None and made.source() is leaf

    def _fits(self, path: _Path, leaf: jax.Array) -> bool:
        if leaf.dtype != self._dtype_of(leaf) or self._is_cut(path, leaf):
            return False
        return not self._layout or leaf.sharding.is_equivalent_to(self._target(path), leaf.ndim)

    def _lay_out(self, params: Params) -> None:
        """Set the shardings of the weights on the first call with parameters on a mesh."""
        mesh = mesh_of(params)
        if self._graph is None or mesh is None or mesh.size == 1 or self._layout:
            return
        leaves = jax.tree_util.tree_flatten_with_path(placement(self._graph, mesh))[0]
        self._layout = {tuple(key.key for key in path): sharding for path, sharding in leaves}

    def _target(self, path: _Path) -> NamedSharding:
        if path[0] == "layers" and isinstance(path[1], int):
            return self._of_one_layer(("layers", *path[2:]))
        return self._layout[path]

    def _of_one_layer(self, path: _Path) -> NamedSharding:
        stacked = self._layout[path]
        return NamedSharding(stacked.mesh, PartitionSpec(*stacked.spec[1:]))

    def _is_cut(self, path: _Path, leaf: jax.Array) -> bool:
        stays = reads_stacked(next(iter(leaf.devices())).platform) if self._stacked is None else self._stacked
        return _is_stacked(path) and not stays

    def _dtype_of(self, leaf: jax.Array) -> jnp.dtype:
        return leaf.dtype if self._dtype is None else self._dtype


def _copies(dtype: jnp.dtype | None, placed: Any = None) -> Any:
    """Return a program (stacked arrays, single arrays) -> copies in `dtype`, with stacked arrays split by layer.

    Args:
        dtype: Dtype of the copies; None: the dtype of each array.
        placed: Shardings of the copies; None: the compiler's choice.
    """
    found = tuple(map(tuple, placed)) if placed else None
    return _copying(dtype, found)


@functools.cache
def _copying(dtype: jnp.dtype | None, placed: Any) -> Any:
    def copies(
        stacked: list[jax.Array], single: list[jax.Array]
    ) -> tuple[tuple[tuple[jax.Array, ...], ...], tuple[jax.Array, ...]]:
        def cast(leaf: jax.Array) -> jax.Array:
            return jnp.copy(leaf) if dtype in (None, leaf.dtype) else leaf.astype(dtype)

        # A single layer is copied too: an output that is an unchanged input would be the same array.
        return tuple(tuple(cast(layer) for layer in leaf) for leaf in stacked), tuple(cast(leaf) for leaf in single)

    return jax.jit(copies, out_shardings=placed)


def apart(params: Params) -> Params:
    """Return the parameters with `layers` as a list. Each stacked array is deleted as soon as it is split."""
    held: dict[_Path, jax.Array | tuple[jax.Array, ...]] = dict(_flat(params))
    for path, leaf in _flat(params).items():
        if _is_stacked(path):
            held[path] = tuple(jax.block_until_ready(_copies(None)([leaf], [])[0][0]))
            leaf.delete()
    return _unflat(held)


def _is_stacked(path: _Path) -> bool:
    """Return whether the array at this path has an axis of layers."""
    return path[0] == "layers" and not isinstance(path[1], int)


def _flat(params: Params) -> dict[_Path, jax.Array]:
    """Return the arrays of a tree by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path): leaf for path, leaf in leaves}


def _unflat(held: Mapping[_Path, jax.Array | tuple[jax.Array, ...]]) -> Params:
    """Return the tree of `_flat`'s paths; layers that were split form a list."""
    flat: dict[_Path, jax.Array] = {}
    for path, value in held.items():
        if isinstance(value, tuple):
            flat |= {("layers", index, *path[1:]): layer for index, layer in enumerate(value)}
        else:
            flat[path] = value
    params: Params = {}
    for path, leaf in flat.items():
        node = params
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    layers = params["layers"]
    return {**params, "layers": [layers[index] for index in sorted(layers)] if 0 in layers else layers}
