"""rl.py on one H200: adapters on a bfloat16 base, which is the reference policy too.

configs/plans/rl_7b_h200_1.md is what it takes; run with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.plan.slice = "h200-1"
    config.plan.model = "configs/models/qwen2.5-7b.json"
    config.policy.param_dtype = "bfloat16"
    config.lora.rank = 32
    config.sft.micro_batch = 1
    config.sft.learning_rate = 1e-4
    config.rl.learning_rate = 1e-5
    config.sampling.slots = 32
    return config
