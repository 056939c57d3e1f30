"""Checkpoints in the layout of Hugging Face: in, straight to the devices; out, whole or not at all.

Ours and theirs hold the same numbers. Theirs has one matrix [out, in] a projection and layer; ours has the axes apart
(heads and head size), the input first, and all layers of a kind stacked in one array. `TOP_TENSORS` and
`LAYER_TENSORS` are the whole mapping. Import then export gives the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from mlagent_jax.checkpoints import safetensors as tensor_files
from mlagent_jax.checkpoints.folders import whole_folder
from mlagent_jax.checkpoints.safetensors import Tensor, TensorFileError
from mlagent_jax.models.config import ModelConfig
from mlagent_jax.models.decoder import Graph, Params, abstract
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.parallelism import Rules
from mlagent_jax.runtime.files import read_json

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GENERATION = "generation_config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_SHARD_SIZE = 5 * 10**9
"""Bytes a file, as transformers writes them."""

# Parameter by path -> (tensor's name, how many leading axes of ours are its input; 0: not transposed).
TOP_TENSORS = {
    "embedder/embedding": ("model.embed_tokens.weight", 0),
    "final_norm/scale": ("model.norm.weight", 0),
    "head/kernel": ("lm_head.weight", 1),
}
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
HEAD = "lm_head.weight"
# Tensors that older files carry and no model reads.
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Where one tensor of a checkpoint lives in our parameters."""

    name: str
    """In the checkpoint."""
    path: tuple[str, ...]
    """In the parameters."""
    layer: int | None
    """Index on the leading axis of a stacked parameter."""
    shape: tuple[int, ...]
    """In our layout, without the axis of layers."""
    inputs: int
    """How many leading axes of `shape` are the input; 0: not transposed."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        """In the layout of the checkpoint."""
        if self.inputs:
            return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])
        return (math.prod(self.shape),) if self.path[-1] == "bias" else self.shape

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """A view of the checkpoint's tensor in our layout."""
        if not self.inputs:
            return tensor.reshape(self.shape)
        outputs = len(self.shape) - self.inputs
        split = tensor.reshape(*self.shape[self.inputs :], *self.shape[: self.inputs])
        return split.transpose(*range(outputs, len(self.shape)), *range(outputs))

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array in the layout of the checkpoint."""
        axes = range(len(self.shape))
        return array.transpose(*axes[self.inputs :], *axes[: self.inputs]).reshape(self.file_shape)


def _slots(config: ModelConfig, params: Params) -> list[_Slot]:
    """Every tensor of a checkpoint of this model, in the order in which it is stored."""
    leaves = {
        tuple(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    slots = []

    def add(name: str, path: tuple[str, ...], layer: int | None, inputs: int) -> None:
        if path in leaves:
            slots.append(_Slot(name, path, layer, leaves[path].shape[layer is not None :], inputs))

    for path, (name, inputs) in TOP_TENSORS.items():
        if path.startswith("embedder"):
            add(name, tuple(path.split("/")), None, inputs)
    for layer in range(config.num_layers):
        for path, (name, inputs) in LAYER_TENSORS.items():
            add(f"model.layers.{layer}.{name}", ("layers", *path.split("/")), layer, inputs)
    for path, (name, inputs) in TOP_TENSORS.items():
        if not path.startswith("embedder"):
            add(name, tuple(path.split("/")), None, inputs)
    if unknown := leaves.keys() - {slot.path for slot in slots}:
        raise ValueError(
            f"parameter {'/'.join(min(unknown))!r} has no place in a Hugging Face checkpoint: merge it first"
        )
    return slots


def read_config(folder: epath.Path) -> ModelConfig:
    """The model that a folder's `config.json` describes.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON, or describes a model that is not supported.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: is {folder} a Hugging Face checkpoint?")
    return ModelConfig.from_hf(read_json(path))


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the folder of a checkpoint says beside shape, weights and tokenizer; an export of it is to say the same."""

    token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Beginning, end and padding, of its `config.json`."""
    generation: bytes | None = None
    """Its `generation_config.json`; None: it has none."""


def read_origin(folder: epath.Path) -> Origin:
    """What a checkpoint's folder says of its origin."""
    raw = read_json(folder / "config.json")
    generation = folder / GENERATION
    if generation.exists():
        read_json(generation)
    return Origin(
        {name: raw[name] for name in _TOKEN_IDS if name in raw},
        generation.read_bytes() if generation.exists() else None,
    )


def load(
    folder: str | os.PathLike[str],
    *,
    dtype: jnp.dtype | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    **options: Any,
) -> tuple[ModelConfig, Graph, Params]:
    """Reads a checkpoint, tensor by tensor, each device's part straight onto it.

    The host holds one layer's tensor at a time, a device besides its parameters one more.

    Args:
      folder: with `config.json` and safetensors files, local or remote (`gs://`); see `hub.fetch` for what the Hugging
        Face hub has.
      dtype: of the parameters; default that of the checkpoint's config.
      mesh: where to put them; None for the default device.
      rules: from logical axes to mesh axes, as in `decoder.create`.
      **options: further ones of `decoder.create`.

    Raises:
      TensorFileError: a file is truncated, or a tensor is missing, unknown or of another shape; it names it.
      ValueError: an unsupported model, or a mesh that does not divide a dimension.
    """
    folder = epath.Path(folder)
    config = read_config(folder)
    dtype = np.dtype(dtype or config.dtype)
    tensors = _open(folder)
    config = _with_own_head(config, tensors)
    graph, target = abstract(config, dtype=dtype, mesh=mesh, rules=rules, **options)
    slots = _slots(config, target)
    for slot in slots:
        if slot.name not in tensors:
            raise TensorFileError(f"{folder} lacks tensor {slot.name!r}")
        if tensors[slot.name].shape != slot.file_shape:
            raise TensorFileError(
                f"{tensors[slot.name].path}: tensor {slot.name!r} has shape {list(tensors[slot.name].shape)}, "
                f"config.json makes it {list(slot.file_shape)}"
            )
    if unknown := sorted(tensors.keys() - {slot.name for slot in slots}):
        raise TensorFileError(f"{folder} has tensor {unknown[0]!r}, which a {config.model_type} model does not use")

    flat: dict[tuple[str, ...], jax.Array] = {}
    for slot in slots:
        leaf = _leaf(target, slot.path)
        sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
        if slot.layer is None:
            flat[slot.path] = _read(slot, tensors[slot.name], sharding, dtype)
            continue
        if slot.layer == 0:
            flat[slot.path] = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(leaf.shape, dtype)
        layer = _read(slot, tensors[slot.name], _of_one_layer(sharding), dtype)
        flat[slot.path] = _set_layer(flat[slot.path], layer, slot.layer)
        flat[slot.path].block_until_ready()  # or many tensors would wait on the host for their turn
    paths, structure = jax.tree_util.tree_flatten_with_path(target)
    return (
        config,
        graph,
        jax.tree.unflatten(structure, [flat[tuple(str(key.key) for key in path)] for path, _ in paths]),
    )


def _leaf(params: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


def _of_one_layer(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The sharding of a slice of a stacked parameter."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


def _read(slot: _Slot, tensor: Tensor, sharding: jax.sharding.Sharding, dtype: np.dtype) -> jax.Array:
    view = slot.ours(tensor.map())
    return jax.make_array_from_callback(slot.shape, sharding, lambda index: np.asarray(view[index], dtype=dtype))


@jax.jit(donate_argnums=0)
def _set_layer(stacked: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)


def _with_own_head(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    """Return `config` untied where a file's head differs from its embedding; drop a head that is only a copy.

    transformers decides likewise: a config may say that they are tied and the weights say otherwise.
    """
    head, embedding = tensors.get(HEAD), tensors.get(f"{TOP_TENSORS['embedder/embedding'][0]}")
    if not config.tie_word_embeddings or head is None or embedding is None:
        return config
    if head.shape == embedding.shape and np.array_equal(head.map(), embedding.map()):
        del tensors[HEAD]
        return config
    log.warning(
        "%s: lm_head.weight differs from the embedding it is said to be tied to, and is used as it is", head.path
    )
    return dataclasses.replace(config, tie_word_embeddings=False)


def _open(folder: epath.Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's files by name, none of them read."""
    index = folder / INDEX
    placed: dict[str, str] = {}
    if (folder / SINGLE).exists():  # before an index, as transformers does: an index beside the one file is stale
        names = [SINGLE]
    elif index.exists():
        placed = read_json(index).get("weight_map") or {}
        if not placed:
            raise TensorFileError(f"{index} has no weight_map: download it again")
        names = sorted(set(placed.values()))
    else:
        raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}: are its weights in another format?")
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).exists():
            lost = next(tensor for tensor, file in placed.items() if file == name)
            raise TensorFileError(f"{folder / name} does not exist: the index says it holds tensor {lost!r}")
        tensors |= tensor_files.read_header(folder / name)
    return {name: tensor for name, tensor in tensors.items() if not _IGNORED.fullmatch(name)}


def save(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    origin: Origin | None = None,
) -> None:
    """Writes a folder for `AutoModelForCausalLM` and `AutoTokenizer`: weights, index, configs, tokenizer.

    The folder appears under its name when it is whole, replacing an older export there. At a remote place, where
    nothing can be renamed, `config.json` comes last. With several processes all must call this; the first one writes.

    Args:
      directory: to be written, local or remote.
      config: of the model.
      params: its parameters, sharded anyhow. The host holds one tensor of one layer at a time.
      tokenizer: to go with it; its folder is copied.
      dtype: in which to store ("float32", "bfloat16", "float16"); default that of `params`.
      max_shard_size: bytes a file, unless a single tensor is larger.
      origin: of the checkpoint that they were before training, if they were one.

    Raises:
      FileExistsError: `directory` is there and is no export.
      ValueError: AutoTokenizer would make another tokenizer of it, or a parameter has no place in such a checkpoint.
    """
    stored = np.dtype(dtype or _leaf(params, ("embedder", "embedding")).dtype)
    config = dataclasses.replace(config, dtype=stored.name)
    slots = _slots(config, params)
    files = _split(slots, stored, max_shard_size)
    by_name = {slot.name: slot for slot in slots}

    def read(name: str) -> np.ndarray:
        slot = by_name[name]
        array = _leaf(params, slot.path)
        array = array if slot.layer is None else _get_layer(array, slot.layer)
        if not array.is_fully_addressable:
            array = multihost_utils.process_allgather(array, tiled=True)
        return slot.theirs(np.asarray(array)).astype(stored, copy=False)

    if jax.process_index() != 0:
        for name in by_name:  # take part in the gathers, in the order of the files
            read(name)
    else:
        with whole_folder(directory) as folder:
            for file, names in files.items():
                tensor_files.write(folder / file, {name: (stored, by_name[name].file_shape) for name in names}, read)
            if len(files) > 1:
                placed = {name: file for file, names in files.items() for name in names}
                total = sum(math.prod(slot.file_shape) for slot in slots) * stored.itemsize
                write_json(epath.Path(folder / INDEX), {"metadata": {"total_size": total}, "weight_map": placed})
            describe(folder, config, tokenizer, origin)
            if tokenizer is not None:
                tokenizer.check_loads_alike(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("hugging_face.save")


@jax.jit
def _get_layer(stacked: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, index, 0, keepdims=False)


def _split(slots: list[_Slot], dtype: np.dtype, limit: int) -> dict[str, list[str]]:
    """Names of tensors by file."""
    groups: list[list[str]] = [[]]
    used = 0
    for slot in slots:
        size = math.prod(slot.file_shape) * dtype.itemsize
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(slot.name)
        used += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, 1)}


def describe(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    tokenizer: Tokenizer | None = None,
    origin: Origin | None = None,
) -> None:
    """Writes everything of a checkpoint but its weights: config.json, generation_config.json and the tokenizer's files.

    What `origin` says of special tokens and of generation stays as it is; where it says nothing, the tokenizer's end of
    text and padding are named. Beside the arrays of a run it makes them exportable by themselves
    (`tools/export_hf.py`).
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    origin = origin or Origin()
    ids = {} if tokenizer is None else {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    write_json(folder / "config.json", {**config.to_hf(), **(origin.token_ids or ids)})
    if origin.generation is None:
        ends = {} if tokenizer is None else {"eos_token_id": _one_or_all(tokenizer.stop_ids)}
        write_json(folder / GENERATION, {**ids, **ends})
    else:
        (folder / GENERATION).write_bytes(origin.generation)
    if tokenizer is not None:
        tokenizer.save(folder)


def _one_or_all(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does."""
    path.write_text(json.dumps(value, indent=2) + "\n")
