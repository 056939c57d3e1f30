"""Optimizers by name. The learning rate is part of the state, so that any schedule can set it each step.

`OptimizerConfig` chooses the state of each parameter. It is laid out as the parameter is, in the memory of the same
devices or of their hosts (`init_state`, `apply`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from optax import contrib

from mlagent_jax.optim.config import OptimizerConfig

HOST_MEMORY = "pinned_host"
"""JAX's name for host memory that a device reads and writes directly."""
_PLAIN = OptimizerConfig()


def make_optimizer(
    kind: str, *, weight_decay: float = 0.0, max_grad_norm: float = 1.0, keeps: OptimizerConfig = _PLAIN
) -> optax.GradientTransformation:
    """Return `adamw` or `muon`, after a clip of the global gradient norm.

    Muon (Jordan et al. 2024) updates the layers' matrices and AdamW the rest (embeddings, norms, biases). There AdamW
    has Nesterov momentum (NAdam, Dozat 2016), as in optax: its first step is (1 + 0.9 / 1.9) = 1.47 times the learning
    rate, and approaches Adam's as the momentum fills. The learning rate is 0 until `with_learning_rate` sets it.
    """

    def build(learning_rate: float) -> optax.GradientTransformation:
        if kind == "muon":
            rule = contrib.muon(
                learning_rate,
                weight_decay=weight_decay,
                adam_weight_decay=weight_decay,
                adam_b2=0.95,
                muon_weight_dimension_numbers=_layer_matrices,
                mu_dtype=_first_moment(keeps),
            )
        else:
            rule = adam(learning_rate, keeps, b2=0.95, weight_decay=weight_decay)
        return clipped(rule, max_grad_norm, keeps)

    return optax.inject_hyperparams(build)(learning_rate=0.0)


def adam(
    learning_rate: optax.ScalarOrSchedule, keeps: OptimizerConfig, *, b2: float = 0.999, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Return AdamW with the moments that `keeps` names. `factored`: Adafactor's second moment instead (Shazeer and
    Stern 2018), with its clip of each update's root mean square to 1, and no first moment."""
    if keeps.moments != "factored":
        return optax.adamw(learning_rate, b1=0.9, b2=b2, weight_decay=weight_decay, mu_dtype=_first_moment(keeps))
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def clipped(
    rule: optax.GradientTransformation, max_norm: float, keeps: OptimizerConfig
) -> optax.GradientTransformation:
    """Return `rule` after a clip of the global gradient norm, in float32, with updates rounded as `keeps` says."""
    rule = _in_float32(optax.chain(optax.clip_by_global_norm(max_norm), rule))
    return optax.chain(rule, stochastic_rounding()) if keeps.rounding == "stochastic" else rule


def _in_float32(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Run `rule` in float32 for parameters and gradients of any dtype. optax gives moments the parameter's dtype, and
    in bfloat16 they would lose small additions."""

    def wide(tree: Any) -> Any:
        return optax.tree.cast(tree, jnp.float32)

    def update(updates: Any, state: optax.OptState, params: Any) -> tuple[Any, optax.OptState]:
        return rule.update(wide(updates), state, wide(params))

    return optax.GradientTransformation(lambda params: rule.init(wide(params)), update)


def _first_moment(keeps: OptimizerConfig) -> Any:
    return jnp.bfloat16 if keeps.moments == "bfloat16" else None  # None: the parameter's dtype


class RoundingState(NamedTuple):
    """Number of updates rounded so far: each draws its own bits."""

    count: jax.Array


def stochastic_rounding(seed: int = 0) -> optax.GradientTransformation:
    """Round updates so that a bfloat16 parameter becomes one of the exact sum's two neighbours, and the exact sum on
    average. Small steps add up, which rounding to nearest would lose.

    Use it last in a chain. The float32 sum gets 16 random bits below bfloat16's last bit and is truncated there.
    """

    def init(params: Any) -> RoundingState:
        del params
        return RoundingState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: RoundingState, params: Any) -> tuple[Any, RoundingState]:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.count), len(leaves))

        def one(update: jax.Array, param: jax.Array, key: jax.Array) -> jax.Array:
            if param.dtype != jnp.bfloat16:
                return update
            exact = param.astype(jnp.float32) + update.astype(jnp.float32)
            noise = jax.random.bits(key, exact.shape, jnp.uint16).astype(jnp.uint32)
            bits = (jax.lax.bitcast_convert_type(exact, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
            rounded = jnp.where(jnp.isfinite(exact), jax.lax.bitcast_convert_type(bits, jnp.float32), exact)
            # Adding this to the parameter gives `rounded`, which bfloat16 represents exactly.
            return rounded - param.astype(jnp.float32)

        return jax.tree.map(one, updates, params, jax.tree.unflatten(structure, keys)), RoundingState(state.count + 1)

    return optax.GradientTransformation(init, update)


def init_state(optimizer: optax.GradientTransformation, params: Any, placement: str = "device") -> optax.OptState:
    """Return the optimizer's initial state, each moment laid out as its parameter; `placement` as in `OptimizerConfig`.

    Without explicit shardings the compiler would replicate all of it: zeros have no layout.
    """
    wanted = abstract_state(optimizer, params, placement)
    return jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))(params)


def abstract_state(optimizer: optax.GradientTransformation, params: Any, placement: str = "device") -> optax.OptState:
    """Return the state of `init_state` as `jax.ShapeDtypeStruct`s with their shardings; `params` may be abstract too.

    Raises:
      ValueError: `placement` is host and the parameters are not on a mesh; JAX needs one for memory kinds.
    """
    placed = {_names(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    on_mesh = [leaf.sharding for leaf in placed.values() if isinstance(leaf.sharding, NamedSharding)]
    everywhere = NamedSharding(on_mesh[0].mesh, PartitionSpec()) if on_mesh else None
    if placement == "host" and not on_mesh:
        raise ValueError("moments in host memory need parameters on a mesh, even for one device: see make_mesh")

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        param = placed.get(_owner(path, placed))
        alike = param is not None and param.shape == leaf.shape and isinstance(param.sharding, NamedSharding)
        sharding = param.sharding if alike else everywhere
        if alike and placement == "host" and leaf.ndim:  # scalars stay on the device
            sharding = sharding.with_memory_kind(HOST_MEMORY)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def apply(
    optimizer: optax.GradientTransformation, grads: Any, state: optax.OptState, params: Any
) -> tuple[Any, optax.OptState]:
    """Return (parameters, state) after one update. State in host memory is moved to the device and back."""
    if not any(map(_on_host, jax.tree.leaves(state))):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state
    return _apply_one_by_one(optimizer, grads, state, params)


def _apply_one_by_one(
    optimizer: optax.GradientTransformation, grads: Any, state: optax.OptState, params: Any
) -> tuple[Any, optax.OptState]:
    """Update one parameter at a time: its moments are loaded when the previous ones are stored, the first when the
    gradients are ready. Without this order the compiler would load all of them at once.

    An optimizer updates whole trees, so it is called once per parameter and the compiler removes unused results.
    """
    placed, structure = jax.tree_util.tree_flatten_with_path(state)
    kept = [leaf for _, leaf in placed]
    # Placeholders for host leaves of other parameters; the compiler removes their unused results.
    here = [jnp.zeros(leaf.shape, leaf.dtype) if _on_host(leaf) else leaf for leaf in kept]
    results, before = [], grads
    known = [_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for names in known:
        indices = [i for i, (path, leaf) in enumerate(placed) if _on_host(leaf) and _owner(path, known) == names]
        loaded = list(here)
        if indices:
            staged, _ = jax.lax.optimization_barrier(([kept[i] for i in indices], before))
            for i, leaf in zip(indices, staged, strict=True):
                loaded[i] = jax.device_put(leaf, jax.memory.Space.Device)
        updates, after = optimizer.update(grads, jax.tree.unflatten(structure, loaded), params)
        moved = jax.tree.leaves(after)
        for i in indices:
            kept[i] = jax.device_put(moved[i], jax.memory.Space.Host)
        results.append(jax.tree.leaves(optax.apply_updates(params, updates))[len(results)])
        before = [kept[i] for i in indices] or before
    kept = [leaf if _on_host(old) else new for leaf, new, (_, old) in zip(kept, moved, placed, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), results), jax.tree.unflatten(structure, kept)


def _on_host(leaf: jax.Array) -> bool:
    return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def _owner(path: tuple[Any, ...], params: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the path of the parameter that a leaf of the optimizer state belongs to: the suffix of the leaf's path
    that is a parameter's path; () for none."""
    names = _names(path)
    return next((names[start:] for start in range(len(names)) if names[start:] in params), ())


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def with_learning_rate(state: optax.OptState, learning_rate: float) -> optax.OptState:
    """Return the optimizer state with this learning rate for its next update."""
    # A host scalar: on a mesh over several processes, a process-local array could not be part of the state.
    hyperparams = state.hyperparams | {"learning_rate": np.float32(learning_rate)}
    return state._replace(hyperparams=hyperparams)


def schedule(kind: str, peak: float, fraction: float, warmup: float = 0.0) -> float:
    """Return the learning rate after `fraction` of training, in [0, 1]: linear up to `peak`, then `cosine` to 0 or
    `constant`."""
    if fraction < warmup:
        return peak * fraction / warmup
    if kind == "constant":
        return peak
    return 0.5 * peak * (1.0 + math.cos(math.pi * (fraction - warmup) / max(1e-9, 1.0 - warmup)))


_MATRIX_AXES = {
    "query": ((1,), (2, 3)),
    "key": ((1,), (2, 3)),
    "value": ((1,), (2, 3)),
    "output": ((1, 2), (3,)),
    "gate": ((1,), (2,)),
    "up": ((1,), (2,)),
    "down": ((1,), (2,)),
}
"""(input axes, output axes) of the decoder's stacked projections; axis 0 is the layer."""


def _layer_matrices(params: Any) -> Any:
    """Return Muon's dimension numbers for the projections of the decoder's layers; None for AdamW's parameters."""

    def numbers(path: tuple[Any, ...], leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        *_, parent, name = ("", *(getattr(key, "key", "") for key in path))
        if name != "kernel" or parent not in _MATRIX_AXES:
            return None
        inputs, outputs = _MATRIX_AXES[parent]
        return contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=outputs)

    return jax.tree_util.tree_map_with_path(numbers, params)
