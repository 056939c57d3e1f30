"""Checkpoints for the sampler: a Hugging Face folder or hub id, or a run's workdir, stage or step."""

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
    """Weights, and the graph that they belong to."""

    graph: Graph
    params: Params
    """Parameters in the tree of `models.create`, with stacked layers, or with a list of layers, which decoding reads
    without a copy."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a completion, in addition to the tokenizer's own."""


def load(
    path_or_hub_id: str | os.PathLike[str], *, dtype: str | None = None, mesh: Mesh | None = None, stacked: bool = False
) -> tuple[Model, Tokenizer]:
    """Return the model and tokenizer of a checkpoint.

    Args:
        path_or_hub_id: A Hugging Face folder or hub id; or a run's step (`WORKDIR/checkpoints/rl/24`), stage (its
            latest step) or workdir (its rl policy, else its sft policy).
        dtype: Dtype of the parameters; default: as stored.
        mesh: Devices of the parameters; None: the default device.
        stacked: Whether to keep the layers stacked, as in training; else they are a list, as decoding reads them.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The model is not supported, or config, weights and tokenizer do not fit together.
    """
    policy = policies.load(path_or_hub_id, policies.Placement(dtype, mesh))
    params = policy.params if stacked else apart(policy.params)
    return Model(policy.graph, params, policy.tokenizer.stop_ids), policy.tokenizer
