"""export: the trained policy as a Hugging Face folder, with its tokenizer."""

from __future__ import annotations

import os

from mlagent_jax.models import hugging_face
from mlagent_jax.policy import trained_policy
from mlagent_jax.run import Run


def export(run: Run) -> None:
    """Write export/ from the policy that `export.policy` names."""
    config = run.config.export
    policy = trained_policy(run, config.policy)
    hugging_face.save(
        os.fspath(run.workdir / "export"),
        policy.config,
        policy.params,
        tokenizer=policy.tokenizer,
        dtype=config.dtype,
        max_shard_size=config.max_shard_mb * 2**20,
    )
