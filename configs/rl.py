"""Step-wise PPO of Qwen2.5-7B from an SFT checkpoint, with Docker workers that take jobs from a queue by URL.

    python -m mlagent_jax.train --config=configs/rl.py --workdir=runs/rl \
        --config.policy.checkpoint=runs/sft/export --config.pool.trajectories=runs/collect \
        --config.workers.queue=postgresql://trainer@queue-host/mlagent --config.workers.store=gs://BUCKET/store

The store is the one that the states were collected with.
"""

from ml_collections import ConfigDict

from configs import base_paper


def get_config() -> ConfigDict:
    config = base_paper.get_config()
    config.stages = ("rl", "evaluate", "export")
    config.policy.checkpoint = "runs/sft/export"
    config.pool.trajectories = "runs/collect"
    config.workers.queue = "postgresql://localhost/mlagent"
    config.workers.store = "runs/collect/store"
    config.workers.slots = 0
    config.workers.sandbox = "docker"
    config.evaluate.policies = ("sft", "rl")
    config.export.policy = "rl"
    config.export.dtype = "bfloat16"
    return config
