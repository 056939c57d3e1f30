"""Settings of a policy of two million parameters that learns everything from nothing, on a few cores.

The quickstart and the regression board of the embedded tasks are based on it. Nothing here is meant for a pretrained
model: base_paper.py is.
"""

from ml_collections import ConfigDict

from environments import tasks
from mlagent_jax.settings.schema import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.policy.compute_dtype = "bfloat16"  # fewer CPU seconds than float32, also without instructions for it
    # Compact prompts and replies of the embedded tasks fit; longer ones cost time in every stage.
    config.prompt.max_prompt_tokens = 256
    config.prompt.max_action_tokens = 64
    config.tasks.train = tasks.names("train")
    config.tasks.held_out = tasks.names("held_out")
    # A policy from nothing learns to read a prompt from many different tasks, not from many runs of a few.
    config.tasks.micro_train = 24
    config.tasks.micro_held_out = 8
    config.collect.trajectories = 6
    # From random weights Muon learns to copy lines of the prompt in minutes, which AdamW does not.
    config.sft.optimizer = "muon"
    config.sft.learning_rate = 5e-3
    config.sft.warmup_fraction = 0.05
    config.sft.epochs = 8
    config.sft.batch_size = 8
    # A small policy moves far in an iteration. The gradient of k2 is that of KL(policy || reference) at any distance.
    config.rl.kl_estimator = "k2"
    config.rl.kl_coefficient = 0.1
    config.rl.learning_rate = 5e-5
    config.rl.iterations = 48
    config.rl.states = 16
    config.rl.samples = 4
    config.rl.max_staleness = 0  # the same cores sample, execute and update: nothing would be won by overlapping
    # An episode keeps its best submission: several different good edits are worth more than one good edit repeated.
    config.rl.best_of = 3
    config.rl.best_of_weight = 0.5
    # States as episodes visit them: half of them the policy's own, as deep as an episode of `evaluate.steps` goes.
    config.pool.refresh_fraction = 0.5
    config.pool.max_depth = config.evaluate.steps - 1
    config.evaluate.episode_tasks_held_in = len(config.tasks.train)
    config.evaluate.episode_tasks_held_out = len(config.tasks.held_out)
    config.evaluate.trajectories = 9  # for a best of 3 with less noise
    return config
