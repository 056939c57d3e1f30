"""The weights as decoding reads them: a tree a layer, in the compute dtype.

What stands in memory like that is used where it is. On TPUs that is all that has the dtype already: their compiler
reads a layer of a stacked array within the product. Elsewhere layers that a trainer keeps stacked (to scan over them)
are cut apart: on CPUs a program that cuts them itself takes as much memory, and decoding 1.4 times as long. Another
dtype is cast. Such a copy is made once for each array, however many batches are sampled with it. A new policy version
is new arrays: theirs are made when it is first used, and what was made of arrays that are no longer there is let go.
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
    """Whether programs for this platform (tpu, gpu or cpu) read a layer of a stacked array without copying it.

    Of TPUs the compiled program says so: no temporary holds a layer's weights, each product slices for itself.
    """
    return platform == "tpu"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters in the form that the sampler's programs take."""

    params: Params
    """`layers` is a list of one tree a layer, or stacked where that is read in place."""


@dataclasses.dataclass(frozen=True)
class _Made:
    source: weakref.ref[jax.Array]
    result: jax.Array | tuple[jax.Array, ...]
    """Of a stacked array one a layer."""


class Preparation:
    """Makes `Weights` of parameters, and remembers what it made of each array until `release`.

    Args:
        dtype: That decoding computes in; None: that of each array.
        stacked: Whether stacked layers are read where they are; None: as `reads_stacked` says of their platform.
        graph: The sampler's, by whose rules weights on a mesh are laid out; None: they stay where they are.
    """

    def __init__(self, dtype: str | None = None, stacked: bool | None = None, graph: Graph | None = None) -> None:
        self._dtype = None if dtype is None else jnp.dtype(dtype)
        self._stacked = stacked
        self._graph = graph
        self._layout: dict[_Path, NamedSharding] = {}
        self.moved_bytes = 0
        """Bytes of the weights that the last call cast, cut or laid out anew."""
        self.moved_so_far = 0, 0.0
        """Bytes, and seconds that they took, of all calls."""
        self._made: dict[int, _Made] = {}  # by the identity of the array that it was made of
        self._lock = threading.Lock()

    def __call__(self, params: Params | Weights, *, donated: Params | None = None) -> Weights:
        """The weights of `params`.

        Args:
            params: In the tree of `models.create`, stacked, or with a list of one tree a layer; already `Weights`: as
                they are.
            donated: Those of `params` (or a tree that has them among others) that will be donated to a program while
                the weights are in use, so that nothing of them may be used where it is. None: no array is.
        """
        if isinstance(params, Weights):
            return params
        with self._lock:
            self._lay_out(params)
            return self._prepare(params, {id(leaf) for leaf in jax.tree.leaves(donated)})

    def copied_bytes(self, params: Params) -> int:
        """What the weights of `params` will take beside them, those that are made already left out."""
        self._lay_out(params)
        return sum(
            leaf.size * self._dtype_of(leaf).itemsize
            for path, leaf in _flat(params).items()
            if not self._fits(path, leaf) and not self._has(leaf)
        )

    def release(self) -> None:
        """Forget all that was made; weights in use keep theirs."""
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
        """Find where the weights of `params` are to be."""
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
    """Return a program: stacked arrays and single ones in, copies in `dtype` out, the stacked ones cut by layer.

    Args:
        dtype: None: that of each array.
        placed: Shardings of what comes out; None: as it comes in.
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

        # A copy also of a single layer: what a program hands through is the array itself.
        return tuple(tuple(cast(layer) for layer in leaf) for leaf in stacked), tuple(cast(leaf) for leaf in single)

    return jax.jit(copies, out_shardings=placed)


def apart(params: Params) -> Params:
    """The same parameters with `layers` as a list, each stacked array deleted as soon as it is cut."""
    held: dict[_Path, jax.Array | tuple[jax.Array, ...]] = dict(_flat(params))
    for path, leaf in _flat(params).items():
        if _is_stacked(path):
            held[path] = tuple(jax.block_until_ready(_copies(None)([leaf], [])[0][0]))
            leaf.delete()
    return _unflat(held)


def _is_stacked(path: _Path) -> bool:
    """Whether the array at this path has an axis of layers."""
    return path[0] == "layers" and not isinstance(path[1], int)


def _flat(params: Params) -> dict[_Path, jax.Array]:
    """Arrays by the names that lead to them."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path): leaf for path, leaf in leaves}


def _unflat(held: Mapping[_Path, jax.Array | tuple[jax.Array, ...]]) -> Params:
    """The tree of `_flat`'s paths, with the layers as a list."""
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
