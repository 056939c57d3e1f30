"""Optimizers by name, with the learning rate as a value of the state, so that any schedule can set it each step."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from optax import contrib


def make_optimizer(kind: str, *, weight_decay: float = 0.0, max_grad_norm: float = 1.0) -> optax.GradientTransformation:
    """`adamw` or `muon`, behind a clip of the global gradient norm.

    Muon (Jordan et al. 2024) takes the matrices of the layers, AdamW the rest (embeddings, norms, biases). The
    learning rate is `with_learning_rate`'s to set; it is 0 until then.
    """

    def build(learning_rate: float) -> optax.GradientTransformation:
        if kind == "muon":
            rule = contrib.muon(
                learning_rate,
                weight_decay=weight_decay,
                adam_weight_decay=weight_decay,
                adam_b2=0.95,
                muon_weight_dimension_numbers=_layer_matrices,
            )
        else:
            rule = optax.adamw(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)
        return optax.chain(optax.clip_by_global_norm(max_grad_norm), rule)

    return optax.inject_hyperparams(build)(learning_rate=0.0)


def with_learning_rate(state: optax.OptState, learning_rate: float) -> optax.OptState:
    """The optimizer state with this learning rate for its next update."""
    hyperparams = state.hyperparams | {"learning_rate": jax.numpy.asarray(learning_rate, jax.numpy.float32)}
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
