"""Every stage of the quickstart in under 90 seconds: proves that all runs, not that it learns."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.tasks.train = config.tasks.train[:2]
    config.tasks.held_out = config.tasks.held_out[:2]
    config.tasks.micro_train = 2
    config.tasks.micro_held_out = 1
    config.collect.trajectories = 2
    config.collect.steps = 3
    config.sft.epochs = 2
    config.sft.renderings = 2
    config.rl.iterations = 2
    config.rl.states = 4
    config.rl.samples = 2
    config.rl.best_of = 2
    config.evaluate.states_held_in = 4
    config.evaluate.states_held_out = 4
    config.evaluate.samples = 2
    config.evaluate.episode_tasks_held_in = 1
    config.evaluate.episode_tasks_held_out = 1
    config.evaluate.trajectories = 1
    config.evaluate.steps = 2
    return config
