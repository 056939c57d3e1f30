"""export: the trained policy as a Hugging Face folder with its tokenizer, or only its adapters in PEFT's format."""

from __future__ import annotations

import os

from mlagent_jax.checkpoints import hugging_face, peft
from mlagent_jax.checkpoints.policies import locate
from mlagent_jax.runs.policies import base_policy, trained_adapters, trained_policy
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime.errors import ConfigError


def export(run: Run) -> None:
    """Write export/ from the policy that `export.policy` names."""
    config = run.config.export
    if config.layout == "peft":
        if not run.config.policy.checkpoint:
            raise ConfigError(
                "config.export.layout is 'peft' and the policy from scratch: it has no base, use 'merged'"
            )
        if locate(run.config.policy.checkpoint) is not None:
            raise ConfigError(
                "config.export.layout is 'peft' and config.policy.checkpoint another run's, which readers of "
                "adapters cannot load as their base: name an export of that run, or use 'merged'"
            )
        adapters, lora = trained_adapters(run, config.policy)
        base = base_policy(run)
        peft.save(os.fspath(run.workdir / "export"), base.config, adapters, lora, run.config.policy.checkpoint)
        return
    policy = trained_policy(run, config.policy)
    hugging_face.save(
        os.fspath(run.workdir / "export"),
        policy.config,
        policy.params,
        tokenizer=policy.tokenizer,
        dtype=config.dtype,
        max_shard_size=config.max_shard_mb * 2**20,
        origin=policy.origin,
    )
