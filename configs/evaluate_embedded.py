"""The regression board: a checkpoint on all embedded tasks, 4 trajectories of 5 steps each. Minutes on 2 cores.

    python -m mlagent_jax.train --config=configs/evaluate_embedded.py --workdir=runs/board \
        --config.policy.checkpoint=runs/quickstart/export
    python tools/compare_runs.py runs/board runs/other_board
"""

from ml_collections import ConfigDict

from configs import base_laptop


def get_config() -> ConfigDict:
    config = base_laptop.get_config()
    config.stages = ("evaluate",)
    config.policy.checkpoint = "runs/quickstart/export"
    config.tasks.micro_train = 0
    config.tasks.micro_held_out = 0
    config.evaluate.policies = ("base",)
    config.evaluate.states_held_in = 0
    config.evaluate.states_held_out = 0
    config.evaluate.trajectories = 4
    config.evaluate.best_of = 4
    config.evaluate.steps = 5
    return config
