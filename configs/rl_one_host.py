"""rl.py on one host with several GPUs: workers on the same host, a SQLite queue and the store in the workdir.

    python tools/plan.py --config=configs/rl_one_host.py --devices=4xH100 --model=OWNER/NAME
    python -m mlagent_jax.train --config=configs/rl_one_host.py --workdir=runs/rl --config.policy.checkpoint=OWNER/NAME

Adapters on a bfloat16 base, which fits 8B on four GPUs of 80 GB. It collects, trains and evaluates in one workdir.
Run it with XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.
"""

import os

from ml_collections import ConfigDict

from configs import rl

HOST_CORES = 8
"""Cores kept for the trainer; the others execute."""


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.stages = ("collect", "sft", "rl", "evaluate", "export")
    config.pool.trajectories = ""
    config.workers.queue = ""
    config.workers.store = ""
    config.workers.slots = max(2, (os.cpu_count() or 2) - HOST_CORES)
    config.workers.sandbox = "auto"
    config.policy.param_dtype = "bfloat16"
    config.lora.rank = 32
    config.sft.learning_rate = 1e-4
    config.rl.learning_rate = 1e-5
    config.rl.sample_ahead = False  # a KV cache beside the activations of the update would not fit
    config.evaluate.policies = ("base", "sft", "rl")
    return config
