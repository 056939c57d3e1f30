"""rl.py on 8 x H100 of 80 GB: full fine-tuning with float32 master weights.

configs/plans/rl_7b_h100_8.md is what it takes; run with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.plan.slice = "h100-8"
    config.plan.model = "configs/models/qwen2.5-7b.json"
    config.sft.micro_batch = 8
    return config
