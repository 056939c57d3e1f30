"""A checkpoint as the sampler uses it: a Hugging Face folder, or what a run of ours has saved."""

from __future__ import annotations

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from mlagent_jax import models
from mlagent_jax.checkpoints import hub, hugging_face
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.models import Graph, Params
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.sampling.weights import apart

_STAGES = ("rl", "sft")  # the furthest first


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights, and the program they are for."""

    graph: Graph
    params: Params
    """In the tree of `models.create`; layers stacked, or a list of one tree each, which decoding needs no copy of."""
    stop_token_ids: tuple[int, ...] = ()
    """Besides the tokenizer's end-of-text token."""


def load(
    path_or_hub_id: str | os.PathLike[str], *, dtype: str | None = None, mesh: Mesh | None = None, stacked: bool = False
) -> tuple[Model, Tokenizer]:
    """The model and tokenizer of a checkpoint.

    Args:
        path_or_hub_id: A Hugging Face folder or hub id; or of a run a step (`WORKDIR/checkpoints/rl/24`), a stage (its
            latest step), or the workdir (its rl policy, else its sft policy).
        dtype: Of the parameters; default: as they are stored.
        mesh: Where to put them; None for the default device.
        stacked: Leave the layers as training keeps them; else they are a list, as decoding reads them.

    Raises:
        FileNotFoundError: Nothing there is a checkpoint.
        ValueError: It is one of a model that is not supported, or of parts that do not fit together.
    """
    model, tokenizer = _load(path_or_hub_id, dtype, mesh)
    return (model if stacked else dataclasses.replace(model, params=apart(model.params))), tokenizer


def _load(path_or_hub_id: str | os.PathLike[str], dtype: str | None, mesh: Mesh | None) -> tuple[Model, Tokenizer]:
    folder = epath.Path(path_or_hub_id)
    if folder.name.isdigit() and (folder.parent / "model").is_dir():
        return _load_saved(folder.parent, int(folder.name), dtype, mesh)
    if (folder / "model").is_dir():
        return _load_saved(folder, None, dtype, mesh)
    if (folder / "checkpoints").is_dir():
        stages = [folder / "checkpoints" / stage for stage in _STAGES if (folder / "checkpoints" / stage).is_dir()]
        if not stages:
            raise FileNotFoundError(f"{folder / 'checkpoints'} has no saved policy: expected {' or '.join(_STAGES)}")
        return _load_saved(stages[0], None, dtype, mesh)
    folder = hub.fetch(path_or_hub_id)
    _, graph, params = hugging_face.load(folder, dtype=dtype, mesh=mesh)
    return Model(graph, params, _generation_stops(folder)), Tokenizer.load(folder)


def _load_saved(stage: epath.Path, step: int | None, dtype: str | None, mesh: Mesh | None) -> tuple[Model, Tokenizer]:
    config = hugging_face.read_config(stage / "model")
    with Checkpointer(stage, read_only=True) as saved:
        step = saved.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"{stage} holds no checkpoint that is whole yet")
        stored = saved.shapes(step)["policy/embedder/embedding"].dtype
        graph, target = models.abstract(config, dtype=stored, mesh=mesh)
        arrays, _ = saved.restore(step, {"policy": target}, partial=True)
    params = arrays["policy"]
    if dtype is not None and jnp.dtype(dtype) != stored:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return Model(graph, params, _generation_stops(stage / "model")), Tokenizer.load(stage / "model")


def _generation_stops(folder: epath.Path) -> tuple[int, ...]:
    """What ends a completion for transformers: chat checkpoints name more tokens than their tokenizer."""
    path = folder / "generation_config.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    return tuple(named) if isinstance(named, list) else () if named is None else (named,)
