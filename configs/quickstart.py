"""The whole pipeline on a laptop, from nothing: expert steps, SFT from scratch, step-wise PPO, evaluation, export."""

from ml_collections import ConfigDict

from configs import base_laptop


def get_config() -> ConfigDict:
    config = base_laptop.get_config()
    config.stages = ("collect", "sft", "evaluate", "rl", "evaluate", "export")
    return config
