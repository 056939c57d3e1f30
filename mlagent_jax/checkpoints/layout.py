"""Names and layouts of tensors: Hugging Face's, one matrix [out, in] for each projection and layer, and ours.

Ours has separate axes (heads and head size), the input first, and all layers of a kind stacked in one array. The two
tables are the whole mapping. Both layouts hold the same numbers: import then export gives the same bits.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from mlagent_jax.models.config import ModelConfig
from mlagent_jax.models.decoder import Params

TOP_TENSORS = {
    "embedder/embedding": ("model.embed_tokens.weight", 0),
    "final_norm/scale": ("model.norm.weight", 0),
    "head/kernel": ("lm_head.weight", 1),
}
"""Name of the tensor, and number of leading input axes of ours (0: not transposed), by the path of our parameter."""
LAYER_TENSORS = {
    "attention_norm/scale": ("input_layernorm.weight", 0),
    "attention/query/kernel": ("self_attn.q_proj.weight", 1),
    "attention/query/bias": ("self_attn.q_proj.bias", 0),
    "attention/key/kernel": ("self_attn.k_proj.weight", 1),
    "attention/key/bias": ("self_attn.k_proj.bias", 0),
    "attention/value/kernel": ("self_attn.v_proj.weight", 1),
    "attention/value/bias": ("self_attn.v_proj.bias", 0),
    "attention/query_norm/scale": ("self_attn.q_norm.weight", 0),
    "attention/key_norm/scale": ("self_attn.k_norm.weight", 0),
    "attention/output/kernel": ("self_attn.o_proj.weight", 2),
    "attention/output/bias": ("self_attn.o_proj.bias", 0),
    "mlp_norm/scale": ("post_attention_layernorm.weight", 0),
    "mlp/gate/kernel": ("mlp.gate_proj.weight", 1),
    "mlp/up/kernel": ("mlp.up_proj.weight", 1),
    "mlp/down/kernel": ("mlp.down_proj.weight", 1),
}
"""The same for the parameters of a layer; `model.layers.<number>.` precedes the name."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, and its place in our parameters."""

    name: str
    """Name in the checkpoint."""
    path: tuple[str, ...]
    """Path in the parameters."""
    layer: int | None
    """Index on the leading axis of a stacked parameter."""
    shape: tuple[int, ...]
    """Shape in our layout, without the axis of layers."""
    inputs: int
    """Number of leading axes of `shape` that are the input; 0: not transposed."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Return the shape in the checkpoint."""
        if self.inputs:
            return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])
        return (math.prod(self.shape),) if self.path[-1] == "bias" else self.shape

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Return a view of the checkpoint's tensor in our layout."""
        if not self.inputs:
            return tensor.reshape(self.shape)
        outputs = len(self.shape) - self.inputs
        split = tensor.reshape(*self.shape[self.inputs :], *self.shape[: self.inputs])
        return split.transpose(*range(outputs, len(self.shape)), *range(outputs))

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """Return our array in the layout of the checkpoint."""
        axes = range(len(self.shape))
        return array.transpose(*axes[self.inputs :], *axes[: self.inputs]).reshape(self.file_shape)


def stored_tensors(config: ModelConfig, params: Params) -> list[StoredTensor]:
    """Return every tensor of a checkpoint of this model, in the order in which it is stored.

    Raises:
      ValueError: a parameter has no place in such a checkpoint.
    """
    leaves = {
        tuple(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    tensors = []

    def add(name: str, path: tuple[str, ...], layer: int | None, inputs: int) -> None:
        if path in leaves:
            tensors.append(StoredTensor(name, path, layer, leaves[path].shape[layer is not None :], inputs))

    for path, (name, inputs) in TOP_TENSORS.items():
        if path.startswith("embedder"):
            add(name, tuple(path.split("/")), None, inputs)
    for layer in range(config.num_layers):
        for path, (name, inputs) in LAYER_TENSORS.items():
            add(f"model.layers.{layer}.{name}", ("layers", *path.split("/")), layer, inputs)
    for path, (name, inputs) in TOP_TENSORS.items():
        if not path.startswith("embedder"):
            add(name, tuple(path.split("/")), None, inputs)
    if unknown := leaves.keys() - {tensor.path for tensor in tensors}:
        raise ValueError(
            f"parameter {'/'.join(min(unknown))!r} has no place in a Hugging Face checkpoint: merge it first"
        )
    return tensors
