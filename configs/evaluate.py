"""Evaluate a checkpoint: fixed states, and full episodes of 15 steps, 8 trajectories a task (arXiv 2505.23723).

    python -m mlagent_jax.train --config=configs/evaluate.py --workdir=runs/evaluate \
        --config.policy.checkpoint=runs/rl/export --config.pool.trajectories=runs/collect
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.stages = ("evaluate",)
    config.policy.checkpoint = "runs/rl/export"
    config.evaluate.policies = ("base",)
    return config
