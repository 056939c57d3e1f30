"""Hugging Face checkpoints: `load` reads one straight to the devices, `save` writes one as a whole or not at all.

`layout` has the names and layouts of the tensors.
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from mlagent_jax.checkpoints import safetensors as tensor_files
from mlagent_jax.checkpoints.folders import whole_folder
from mlagent_jax.checkpoints.layout import TOP_TENSORS, StoredTensor, stored_tensors
from mlagent_jax.checkpoints.safetensors import Tensor, TensorFileError
from mlagent_jax.models.config import ModelConfig
from mlagent_jax.models.decoder import Graph, Params, abstract
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.parallelism import Rules
from mlagent_jax.runtime import processes
from mlagent_jax.runtime.files import read_json

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GENERATION = "generation_config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MAX_SHARD_SIZE = 5 * 10**9
"""Maximum bytes per file; the default of transformers."""

HEAD = "lm_head.weight"
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Tensors of older files that no model reads."""


def read_config(folder: epath.Path) -> ModelConfig:
    """Return the model that a folder's `config.json` describes.

    Raises:
      FileNotFoundError: the folder has no `config.json`.
      ValueError: the file is not JSON, or describes a model that is not supported.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: is {folder} a Hugging Face checkpoint?")
    return ModelConfig.from_hf(read_json(path))


@dataclasses.dataclass(frozen=True)
class Origin:
    """Contents of a checkpoint's folder, beyond shape, weights and tokenizer, that an export repeats."""

    token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Ids of beginning, end and padding in `config.json`."""
    generation: bytes | None = None
    """Contents of `generation_config.json`; None: the folder has none."""


def read_origin(folder: epath.Path) -> Origin:
    """Read the `Origin` of a checkpoint's folder."""
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
    """Read a checkpoint tensor by tensor, each shard straight onto its device.

    The host holds one layer's tensor at a time; a device holds one more tensor than its parameters.

    Args:
      folder: folder with `config.json` and safetensors files, local or remote (`gs://`); `hub.fetch` downloads from the
        Hugging Face hub.
      dtype: dtype of the parameters; default: the dtype in the checkpoint's config.
      mesh: devices of the parameters; None: the default device.
      rules: table from logical axes to mesh axes, as in `decoder.create`.
      **options: further options of `decoder.create`.

    Raises:
      TensorFileError: a file is truncated, or a tensor is missing, unknown or of another shape; the message names it.
      ValueError: the model is not supported, or the mesh does not divide a dimension.
    """
    folder = epath.Path(folder)
    config = read_config(folder)
    dtype = np.dtype(dtype or config.dtype)
    tensors = _open(folder)
    config = _with_own_head(config, tensors)
    graph, target = abstract(config, dtype=dtype, mesh=mesh, rules=rules, **options)
    entries = stored_tensors(config, target)
    for entry in entries:
        if entry.name not in tensors:
            raise TensorFileError(f"{folder} lacks tensor {entry.name!r}")
        if tensors[entry.name].shape != entry.file_shape:
            raise TensorFileError(
                f"{tensors[entry.name].path}: tensor {entry.name!r} has shape {list(tensors[entry.name].shape)}, "
                f"config.json makes it {list(entry.file_shape)}"
            )
    if unknown := sorted(tensors.keys() - {entry.name for entry in entries}):
        raise TensorFileError(f"{folder} has tensor {unknown[0]!r}, which a {config.model_type} model does not use")

    flat: dict[tuple[str, ...], jax.Array] = {}
    for entry in entries:
        leaf = _leaf(target, entry.path)
        sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
        if entry.layer is None:
            flat[entry.path] = _read(entry, tensors[entry.name], sharding, dtype)
            continue
        if entry.layer == 0:
            flat[entry.path] = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(leaf.shape, dtype)
        layer = _read(entry, tensors[entry.name], _of_one_layer(sharding), dtype)
        flat[entry.path] = _set_layer(flat[entry.path], layer, entry.layer)
        flat[entry.path].block_until_ready()  # Otherwise many tensors would wait in host memory.
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
    """Return the sharding of one layer of a stacked parameter."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


def _read(entry: StoredTensor, tensor: Tensor, sharding: jax.sharding.Sharding, dtype: np.dtype) -> jax.Array:
    view = entry.ours(tensor.map())
    return jax.make_array_from_callback(entry.shape, sharding, lambda index: np.asarray(view[index], dtype=dtype))


@jax.jit(donate_argnums=0)
def _set_layer(stacked: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)


def _with_own_head(config: ModelConfig, tensors: dict[str, Tensor]) -> ModelConfig:
    """Return `config`, untied if the file's head differs from its embedding; drop a head that is only a copy.

    A config may say that the two are tied while the weights differ. transformers decides in the same way.
    """
    head, embedding = tensors.get(HEAD), tensors.get(TOP_TENSORS["embedder/embedding"][0])
    if not config.tie_word_embeddings or head is None or embedding is None:
        return config
    if head.shape == embedding.shape and np.array_equal(head.map(), embedding.map()):
        del tensors[HEAD]
        return config
    log.warning(
        "%s: lm_head.weight differs from the embedding although config.json ties them; the head is used as it is",
        head.path,
    )
    return dataclasses.replace(config, tie_word_embeddings=False)


def _open(folder: epath.Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's files by name, without reading their contents."""
    index = folder / INDEX
    placed: dict[str, str] = {}
    if (folder / SINGLE).exists():  # Before the index, as in transformers: an index beside a single file is stale.
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
    """Write a folder for `AutoModelForCausalLM` and `AutoTokenizer`: weights, index, configs, tokenizer.

    The folder appears under its name when it is complete, and replaces an older export. A remote store cannot rename,
    so `config.json` is written last there. Every process of a multi-host run must call this; the first one writes.

    Args:
      directory: folder to write, local or remote.
      config: config of the model.
      params: parameters of the model, with any sharding. The host holds one tensor of one layer at a time.
      tokenizer: tokenizer whose folder is copied.
      dtype: dtype of the files ("float32", "bfloat16", "float16"); default: the dtype of `params`.
      max_shard_size: maximum bytes per file, unless a single tensor is larger.
      origin: origin of the checkpoint that was trained, if there was one.

    Raises:
      FileExistsError: `directory` exists and is not an export.
      ValueError: AutoTokenizer would load another tokenizer, or a parameter has no place in such a checkpoint.
      PeerError: the first process failed; in the first process, its own error is raised.
    """
    stored = np.dtype(dtype or _leaf(params, ("embedder", "embedding")).dtype)
    config = dataclasses.replace(config, dtype=stored.name)
    entries = stored_tensors(config, params)
    files = _split(entries, stored, max_shard_size)
    by_name = {entry.name: entry for entry in entries}

    def read(name: str) -> np.ndarray:
        entry = by_name[name]
        array = _leaf(params, entry.path)
        array = array if entry.layer is None else _get_layer(array, entry.layer)
        return entry.theirs(processes.fetch(array)).astype(stored, copy=False)

    unread = iter(by_name)  # All processes take part in the gathers, in the order of the files.

    def take(name: str) -> np.ndarray:
        next(unread)
        return read(name)

    def write() -> None:
        with whole_folder(directory) as folder:
            for file, names in files.items():
                shapes = {name: (stored, by_name[name].file_shape) for name in names}
                tensor_files.write(folder / file, shapes, take)
            if len(files) > 1:
                placed = {name: file for file, names in files.items() for name in names}
                total = sum(math.prod(entry.file_shape) for entry in entries) * stored.itemsize
                write_json(epath.Path(folder / INDEX), {"metadata": {"total_size": total}, "weight_map": placed})
            describe(folder, config, tokenizer, origin)
            if tokenizer is not None:
                tokenizer.check_loads_alike(folder)

    processes.lead(write, lambda: [read(name) for name in unread])


@jax.jit
def _get_layer(stacked: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, index, 0, keepdims=False)


def _split(entries: list[StoredTensor], dtype: np.dtype, limit: int) -> dict[str, list[str]]:
    """Return the names of the tensors by file."""
    groups: list[list[str]] = [[]]
    used = 0
    for entry in entries:
        size = math.prod(entry.file_shape) * dtype.itemsize
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(entry.name)
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
    """Write all files of a checkpoint except the weights: config.json, generation_config.json and the tokenizer's.

    Special tokens and generation settings of `origin` are kept. Without them, the tokenizer's end of text and padding
    are written. A run's checkpoints have these files too, so that `tools/export_hf.py` needs nothing else.
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
