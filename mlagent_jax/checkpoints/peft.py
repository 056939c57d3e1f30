"""Adapters in the layout of Hugging Face's PEFT: a folder for `PeftModel.from_pretrained(base, folder)` and vLLM.

adapter_config.json           rank, alpha, which modules
adapter_model.safetensors     base_model.model.<module>.lora_A.weight [rank, in], .lora_B.weight [out, rank]
"""

from __future__ import annotations

import json
import os
from typing import Any

import jax
import numpy as np

from mlagent_jax.checkpoints import hub
from mlagent_jax.checkpoints import safetensors as tensor_files
from mlagent_jax.checkpoints.folders import whole_folder
from mlagent_jax.checkpoints.layout import LAYER_TENSORS, TOP_TENSORS
from mlagent_jax.models.config import LoRA, ModelConfig
from mlagent_jax.models.decoder import Params
from mlagent_jax.models.layers import ADAPTER
from mlagent_jax.runtime import processes

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save(directory: str | os.PathLike[str], config: ModelConfig, adapters: Params, lora: LoRA, base: str) -> None:
    """Write the folder; it appears under its name when it is complete.

    Every process of a multi-host run must call this; the first one writes.

    Args:
      directory: folder to write, local or remote.
      config: config of the model.
      adapters: parameters, as `models.lora.create` returns them.
      lora: rank, scale and targets of the adapters.
      base: folder or hub id of the checkpoint that the adapters belong to; readers load it first.

    Raises:
      FileExistsError: `directory` exists and is not an export.
      PeerError: the first process failed; there, its own error is raised.
    """
    tensors = dict(_tensors(config, jax.tree.map(processes.fetch, adapters)))
    modules = sorted({name.split(".")[-3] for name in tensors})

    def write() -> None:
        with whole_folder(directory, CONFIG) as folder:
            shapes = {name: (array.dtype, array.shape) for name, array in tensors.items()}
            tensor_files.write(folder / WEIGHTS, shapes, tensors.__getitem__)
            (folder / CONFIG).write_text(json.dumps(_description(lora, modules, base), indent=2) + "\n")

    processes.agree(write)


def _description(lora: LoRA, modules: list[str], base: str) -> dict[str, Any]:
    name, revision = hub.split(base)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _tensors(config: ModelConfig, adapters: Params) -> Any:
    """Yield the name and the float32 array of each tensor of the file."""
    for path, (name, _) in LAYER_TENSORS.items():
        if (adapter := _at(adapters, ("layers", *path.split("/")))) is not None:
            down, up = np.asarray(adapter["down"]), np.asarray(adapter["up"])
            for layer in range(config.num_layers):
                yield from _pair(f"model.layers.{layer}.{name}", down[layer], up[layer])
    for path, (name, _) in TOP_TENSORS.items():
        if (adapter := _at(adapters, tuple(path.split("/")))) is not None:
            yield from _pair(name, np.asarray(adapter["down"]), np.asarray(adapter["up"]))


def _pair(name: str, down: np.ndarray, up: np.ndarray) -> Any:
    module = f"base_model.model.{name.removesuffix('.weight')}"
    yield f"{module}.lora_A.weight", np.ascontiguousarray(down.reshape(-1, down.shape[-1]).T)
    yield f"{module}.lora_B.weight", np.ascontiguousarray(up.reshape(up.shape[0], -1).T)


def _at(adapters: Params, path: tuple[str, ...]) -> Params | None:
    """Return the adapter of the linear map whose kernel has this path, or None."""
    *parents, leaf = path
    if leaf != "kernel":
        return None
    for name in parents:
        adapters = adapters.get(name, {})
    return adapters.get(ADAPTER)
