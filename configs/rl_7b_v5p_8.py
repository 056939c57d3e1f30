"""rl.py on a v5p-8 (4 chips, one host): full fine-tuning with float32 master weights.

configs/plans/rl_7b_v5p_8.md is what it takes.
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.plan.slice = "v5p-8"
    config.plan.model = "configs/models/qwen2.5-7b.json"
    config.optimizer.moments = "bfloat16"
    config.sft.micro_batch = 4
    config.sampling.slots = 32
    return config
