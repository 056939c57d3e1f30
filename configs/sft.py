"""Supervised fine-tuning of Qwen2.5-7B on collected trajectories, with the paper's settings (arXiv 2505.23723).

python -m mlagent_jax.train --config=configs/sft.py --workdir=runs/sft --config.pool.trajectories=runs/collect
"""

from ml_collections import ConfigDict

from configs import collect


def get_config() -> ConfigDict:
    config = collect.get_config()
    config.stages = ("sft", "export")
    config.policy.checkpoint = "Qwen/Qwen2.5-7B"
    config.policy.compute_dtype = "bfloat16"
    config.policy.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.workers.slots = 0
    config.pool.trajectories = "runs/collect"
    config.sft.epochs = 2
    config.sft.batch_size = 64
    config.sft.micro_batch = 8
    config.sft.learning_rate = 2e-5
    config.sft.warmup_fraction = 0.0
    config.sft.optimizer = "adamw"
    config.export.policy = "sft"
    return config
