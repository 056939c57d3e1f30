"""Optimizers by name, with the learning rate as a value of the state, so that any schedule can set it each step.

What an optimizer keeps for each parameter is a choice of its own (`OptimizerConfig`). It is laid out as the parameter
is, in the memory of the same devices or in that of their hosts (`init_state`, `apply`).
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

from mlagent_jax.settings.schema import OptimizerConfig

HOST_MEMORY = "pinned_host"
"""What JAX calls the memory of a device's host that the device itself reads and writes."""
_PLAIN = OptimizerConfig()


def make_optimizer(
    kind: str, *, weight_decay: float = 0.0, max_grad_norm: float = 1.0, keeps: OptimizerConfig = _PLAIN
) -> optax.GradientTransformation:
    """`adamw` or `muon`, behind a clip of the global gradient norm.

    Muon (Jordan et al. 2024) takes the matrices of the layers, AdamW the rest (embeddings, norms, biases), there with
    Nesterov momentum (NAdam, Dozat 2016), as optax has it: its first step is (1 + 0.9 / 1.9) = 1.47 times the learning
    rate, and it comes down to Adam's as the momentum fills. The learning rate is `with_learning_rate`'s to set; it is 0
    until then.
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
    """AdamW with the moments that `keeps` names; `factored`: Adafactor's second moment instead (Shazeer and Stern
    2018), with its clip of each update's root mean square to 1, and no first moment."""
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
    """`rule` behind a clip of the global gradient norm, in float32, and its updates rounded as `keeps` says."""
    rule = _in_float32(optax.chain(optax.clip_by_global_norm(max_norm), rule))
    return optax.chain(rule, stochastic_rounding()) if keeps.rounding == "stochastic" else rule


def _in_float32(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same for parameters and gradients of any dtype: moments like a bfloat16 parameter's own would lose what is
    added to them. (optax makes each as its parameter is.)"""

    def wide(tree: Any) -> Any:
        return optax.tree.cast(tree, jnp.float32)

    def update(updates: Any, state: optax.OptState, params: Any) -> tuple[Any, optax.OptState]:
        return rule.update(wide(updates), state, wide(params))

    return optax.GradientTransformation(lambda params: rule.init(wide(params)), update)


def _first_moment(keeps: OptimizerConfig) -> Any:
    return jnp.bfloat16 if keeps.moments == "bfloat16" else None  # None: as the parameter


class RoundingState(NamedTuple):
    """Updates rounded so far: each draws its own bits."""

    count: jax.Array


def stochastic_rounding(seed: int = 0) -> optax.GradientTransformation:
    """Updates after which a bfloat16 parameter is one of the two neighbours of the exact sum, and the exact sum on
    average: small steps add up where rounding to the nearest would lose every one of them.

    Last in a chain. The sum in float32 gets 16 random bits below bfloat16's last, and is cut there.
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
            # Whoever adds this to the parameter gets `rounded`, which bfloat16 holds exactly.
            return rounded - param.astype(jnp.float32)

        return jax.tree.map(one, updates, params, jax.tree.unflatten(structure, keys)), RoundingState(state.count + 1)

    return optax.GradientTransformation(init, update)


def init_state(optimizer: optax.GradientTransformation, params: Any, placement: str = "device") -> optax.OptState:
    """The optimizer's first state, each moment laid out as its parameter; `placement` as in `OptimizerConfig`.

    Left to itself, the compiler would put the whole of it on every device: nothing ties zeros to a layout.
    """
    wanted = abstract_state(optimizer, params, placement)
    return jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))(params)


def abstract_state(optimizer: optax.GradientTransformation, params: Any, placement: str = "device") -> optax.OptState:
    """What `init_state` makes, as `jax.ShapeDtypeStruct`s with their shardings; `params` may be abstract too.

    Raises:
      ValueError: `placement` is host and the parameters are not on a mesh, without which JAX keeps no memory apart.
    """
    placed = {_names(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    on_mesh = [leaf.sharding for leaf in placed.values() if isinstance(leaf.sharding, NamedSharding)]
    everywhere = NamedSharding(on_mesh[0].mesh, PartitionSpec()) if on_mesh else None
    if placement == "host" and not on_mesh:
        raise ValueError("moments in the host's memory need parameters on a mesh, be it of one device: see make_mesh")

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        param = placed.get(_owner(path, placed))
        alike = param is not None and param.shape == leaf.shape and isinstance(param.sharding, NamedSharding)
        sharding = param.sharding if alike else everywhere
        if alike and placement == "host" and leaf.ndim:  # a number is not worth the way
            sharding = sharding.with_memory_kind(HOST_MEMORY)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def apply(
    optimizer: optax.GradientTransformation, grads: Any, state: optax.OptState, params: Any
) -> tuple[Any, optax.OptState]:
    """(parameters, state) after one update. What is in the memory of the host comes for it, and goes back."""
    if not any(map(_is_away, jax.tree.leaves(state))):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state
    return _apply_in_turn(optimizer, grads, state, params)


def _apply_in_turn(
    optimizer: optax.GradientTransformation, grads: Any, state: optax.OptState, params: Any
) -> tuple[Any, optax.OptState]:
    """One parameter's moments at a time: they come when those before them are back, the first when the gradients are
    there. Left to itself, the compiler would bring all of them at once.

    An optimizer updates whole trees: it is called once a parameter, and the compiler leaves out what is not used of it.
    """
    placed, structure = jax.tree_util.tree_flatten_with_path(state)
    kept = [leaf for _, leaf in placed]
    # Where a leaf is away, and it is not its turn, what stands for it is not used.
    here = [jnp.zeros(leaf.shape, leaf.dtype) if _is_away(leaf) else leaf for leaf in kept]
    results, before = [], grads
    known = [_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for names in known:
        turn = [i for i, (path, leaf) in enumerate(placed) if _is_away(leaf) and _owner(path, known) == names]
        loaded = list(here)
        if turn:
            away, _ = jax.lax.optimization_barrier(([kept[i] for i in turn], before))
            for i, leaf in zip(turn, away, strict=True):
                loaded[i] = jax.device_put(leaf, jax.memory.Space.Device)
        updates, after = optimizer.update(grads, jax.tree.unflatten(structure, loaded), params)
        moved = jax.tree.leaves(after)
        for i in turn:
            kept[i] = jax.device_put(moved[i], jax.memory.Space.Host)
        results.append(jax.tree.leaves(optax.apply_updates(params, updates))[len(results)])
        before = [kept[i] for i in turn] or before
    kept = [leaf if _is_away(old) else new for leaf, new, (_, old) in zip(kept, moved, placed, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), results), jax.tree.unflatten(structure, kept)


def _is_away(leaf: jax.Array) -> bool:
    return jax.typeof(leaf).memory_space == jax.memory.Space.Host


def _owner(path: tuple[Any, ...], params: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    """Of a leaf of an optimizer's state, the parameter: a moment stands at the path of its own, somewhere in the
    optimizer's structure. () for none."""
    names = _names(path)
    return next((names[start:] for start in range(len(names)) if names[start:] in params), ())


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def with_learning_rate(state: optax.OptState, learning_rate: float) -> optax.OptState:
    """The optimizer state with this learning rate for its next update."""
    # A number of the host: on a mesh over several processes an array of this one's own could not be part of the state.
    hyperparams = state.hyperparams | {"learning_rate": np.float32(learning_rate)}
    return state._replace(hyperparams=hyperparams)


def schedule(kind: str, peak: float, fraction: float, warmup: float = 0.0) -> float:
    """Learning rate after `fraction` of training, in [0, 1]: linear up to `peak`, then `cosine` to 0 or `constant`."""
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
    """Muon's dimension numbers for the projections of the decoder's layers; None for what is AdamW's."""

    def numbers(path: tuple[Any, ...], leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        *_, parent, name = ("", *(getattr(key, "key", "") for key in path))
        if name != "kernel" or parent not in _MATRIX_AXES:
            return None
        inputs, outputs = _MATRIX_AXES[parent]
        return contrib.MuonDimensionNumbers(reduction_axis=inputs, output_axis=outputs)

    return jax.tree_util.tree_map_with_path(numbers, params)
