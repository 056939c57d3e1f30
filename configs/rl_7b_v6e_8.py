"""rl.py on a v6e-8 (8 chips, one host): adapters on a bfloat16 base, which is the reference policy too.

configs/plans/rl_7b_v6e_8.md is what it takes.
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.plan.slice = "v6e-8"
    config.plan.model = "configs/models/qwen2.5-7b.json"
    config.mesh.fsdp = 2
    config.mesh.tensor = 4
    config.policy.param_dtype = "bfloat16"
    config.lora.rank = 32
    config.sft.micro_batch = 2
    config.sft.learning_rate = 1e-4
    config.rl.learning_rate = 1e-5
    return config
