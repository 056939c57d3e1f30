"""The whole pipeline on a laptop, from nothing: expert steps, SFT from scratch, step-wise PPO, evaluation, export."""

from ml_collections import ConfigDict

from environments import tasks
from mlagent_jax.settings.schema import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.stages = ("collect", "sft", "evaluate", "rl", "evaluate", "export")
    config.policy.compute_dtype = "bfloat16"
    config.prompt.max_prompt_tokens = 256
    config.prompt.max_action_tokens = 64
    config.tasks.train = tasks.names("train")
    config.tasks.held_out = tasks.names("held_out")
    config.tasks.micro_train = 24
    config.tasks.micro_held_out = 8
    config.collect.trajectories = 6
    config.sft.optimizer = "muon"
    config.sft.learning_rate = 5e-3
    config.sft.warmup_fraction = 0.05
    config.sft.epochs = 8
    config.sft.batch_size = 8
    config.rl.learning_rate = 5e-5
    config.rl.kl_estimator = "k2"
    config.rl.iterations = 48
    config.rl.states = 16
    config.rl.samples = 4
    config.rl.max_staleness = 0  # the same cores sample, execute and update: nothing would be won by overlapping
    # An episode keeps its best submission: several different good edits are worth more than one good edit repeated.
    config.rl.best_of = 3
    config.rl.best_of_weight = 0.5
    config.rl.kl_coefficient = 0.1
    # States as episodes visit them: half of them the policy's own, as deep as an episode of `evaluate.steps` goes.
    config.pool.refresh_fraction = 0.5
    config.pool.max_depth = 3
    config.evaluate.episode_tasks_held_in = 12
    config.evaluate.episode_tasks_held_out = 10
    config.evaluate.trajectories = 9  # for a best of 3 with less noise
    return config
