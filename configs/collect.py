"""Expert trajectories alone: the data of sft.py and the states of rl.py."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("collect",)
    config.prompt.profile = "full"
    config.prompt.max_prompt_tokens = 14_000
    config.prompt.max_action_tokens = 1_000
    config.sft.row_tokens = 15_000
    config.collect.trajectories = 100
    config.collect.steps = 15
    config.ideas.keep = 10
    config.workers.slots = 8
    return config
