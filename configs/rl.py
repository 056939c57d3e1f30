"""Step-wise PPO of Qwen2.5-7B from an SFT checkpoint, with Docker workers that take jobs from a queue by URL.

    python -m mlagent_jax.train --config=configs/rl.py --workdir=runs/rl \
        --config.policy.checkpoint=runs/sft/export --config.pool.trajectories=runs/collect \
        --config.workers.queue=postgresql://trainer@queue-host/mlagent --config.workers.store=gs://BUCKET/store

The store is the one that the states were collected with.
"""

from ml_collections import ConfigDict

from configs import sft


def get_config() -> ConfigDict:
    config = sft.get_config()
    config.stages = ("rl", "evaluate", "export")
    config.policy.checkpoint = "runs/sft/export"
    config.workers.queue = "postgresql://localhost/mlagent"
    config.workers.store = "runs/collect/store"
    config.workers.slots = 0
    config.workers.sandbox = "docker"
    config.rl.iterations = 40
    config.rl.states = 64
    config.rl.samples = 4
    config.rl.best_of = 1  # as in the paper: the reward of each action
    config.rl.learning_rate = 1e-6
    config.rl.epochs = 1
    config.rl.minibatches = 4
    config.rl.micro_batch = 8
    config.rl.kl_coefficient = 0.01
    # Workers on other hosts execute while the devices sample and update, one batch ahead; the second version is for
    # stragglers, a host that dies or a script that takes an hour, for which no batch waits longer than this.
    config.rl.max_staleness = 2
    config.rl.straggler_seconds = 300.0
    config.sampling.slots = 64
    config.evaluate.policies = ("sft", "rl")
    config.evaluate.steps = 15
    config.evaluate.trajectories = 8
    config.evaluate.best_of = 8
    config.export.policy = "rl"
    config.export.dtype = "bfloat16"
    return config
