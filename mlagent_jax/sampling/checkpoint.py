"""A checkpoint as the sampler uses it: a Hugging Face folder, or what a run of ours has saved."""

from __future__ import annotations

import dataclasses
import os

from jax.sharding import Mesh

from mlagent_jax.checkpoints import policies
from mlagent_jax.models import Graph, Params
from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.sampling.weights import apart


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights, and the program they are for."""

    graph: Graph
    params: Params
    """In the tree of `models.create`; layers stacked, or a list of one tree each, which decoding needs no copy of."""
    stop_token_ids: tuple[int, ...] = ()
    """What ends a completion, besides the tokenizer's own."""


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
    policy = policies.load(path_or_hub_id, policies.Placement(dtype, mesh))
    params = policy.params if stacked else apart(policy.params)
    return Model(policy.graph, params, policy.tokenizer.stop_ids), policy.tokenizer
