"""Evaluate agents: full episodes of 15 steps or 30 minutes, 8 trajectories a task (arXiv 2505.23723).

    python -m mlagent_jax.train --config=configs/evaluate.py --workdir=runs/evaluate \
        --config.policy.checkpoint=runs/rl/export --config.evaluate.policies=base,expert,nothing

`config.evaluate.policies` names the agents (docs/evaluation.md). Fixed states are evaluated too where
`config.evaluate.states_held_in` and `_held_out` are above 0 and `config.pool.trajectories` names a collection.
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.stages = ("evaluate",)
    config.policy.checkpoint = "runs/rl/export"
    config.pool.trajectories = ""
    config.evaluate.policies = ("base",)
    config.evaluate.states_held_in = 0
    config.evaluate.states_held_out = 0
    return config
