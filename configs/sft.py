"""Supervised fine-tuning of Qwen2.5-7B on collected trajectories, with the paper's settings (arXiv 2505.23723).

python -m mlagent_jax.train --config=configs/sft.py --workdir=runs/sft --config.pool.trajectories=runs/collect
"""

from ml_collections import ConfigDict

from configs import base_paper


def get_config() -> ConfigDict:
    config = base_paper.get_config()
    config.stages = ("sft", "export")
    config.policy.checkpoint = "Qwen/Qwen2.5-7B"
    config.workers.slots = 0
    config.pool.trajectories = "runs/collect"
    config.export.policy = "sft"
    return config
