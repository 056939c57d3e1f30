"""Expert trajectories alone: the data of sft.py and the states of rl.py."""

from ml_collections import ConfigDict

from configs import base_paper


def get_config() -> ConfigDict:
    config = base_paper.get_config()
    config.stages = ("collect",)
    config.workers.slots = 8
    return config
