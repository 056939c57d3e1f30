"""rl.py on a v5e slice of 16 chips: adapters on a bfloat16 base, which is the reference policy too.

configs/plans/rl_7b_v5e_16.md is what it takes. Full fine-tuning at these lengths needs more memory than the slice has.
Its four hosts make one mesh: start it on each of them (docs/several_hosts.md).
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.plan.slice = "v5e-16"
    config.plan.model = "configs/models/qwen2.5-7b.json"
    config.mesh.fsdp = 4
    config.mesh.tensor = 4
    config.policy.param_dtype = "bfloat16"
    config.lora.rank = 32
    config.sft.micro_batch = 8
    config.sft.learning_rate = 1e-4
    config.rl.learning_rate = 1e-5
    config.rl.sample_ahead = False  # the sampler's cache and an update do not fit beside each other
    return config
