"""Settings of the paper (arXiv 2505.23723), on which the configs of pretrained models are based.

Where the paper publishes a value, it stands here. It does not publish PPO's learning rate, batch, KL and clip, or the
size of the state pool: those values are ours. docs/method.md tells which are which. Reward, estimator, loss and KL are
the defaults of `mlagent_jax.settings`; `--config.rl.reward=paper_v1` is the paper's reward.
"""

from ml_collections import ConfigDict

from environments import tasks
from mlagent_jax.settings.schema import default_config

STEPS = 15
"""Maximum steps of a trajectory, of the expert as of an evaluated agent."""


def get_config() -> ConfigDict:
    config = default_config()
    config.policy.compute_dtype = "bfloat16"
    config.policy.remat = "full"  # activations of 15,000 tokens do not fit beside a 7B's parameters
    config.mesh.data = 1
    config.mesh.fsdp = -1  # full fine-tuning of a 7B needs its parameters split over all devices

    # Pretrained models follow a description of the actions. The state is the whole history (the paper's MDP), as much
    # of it as fits 15,000 tokens, the paper's cut, with the action.
    config.prompt.profile = "full"
    config.prompt.max_prompt_tokens = 14_000
    config.prompt.max_action_tokens = 1_000
    config.prompt.history_steps = STEPS - 1

    # Tasks that need no download; docs/paper_tasks.md names the paper's 9 and 10. Like the paper's, each is a whole
    # task: generated micro-tasks are for policies that learn from nothing.
    config.tasks.train = tasks.names("train")
    config.tasks.held_out = tasks.names("held_out")

    config.ideas.keep = 10  # the most diverse of at least 100 candidates
    config.collect.trajectories = 100  # a task; the paper has 10,000 over 9 tasks
    config.collect.steps = STEPS

    config.sft.epochs = 2
    config.sft.batch_size = 64
    config.sft.micro_batch = 8  # whole rows for each of eight devices
    config.sft.row_tokens = 15_000
    config.sft.learning_rate = 2e-5  # cosine, without warm-up or weight decay

    # A fixed pool of the expert's states, of every depth at which an evaluated agent acts: 0 to STEPS - 1.
    config.pool.max_depth = STEPS - 1
    config.pool.refresh_fraction = 0.0
    config.rl.iterations = 40  # Fig. 4
    config.rl.states = 64
    config.rl.samples = 4
    config.rl.best_of = 1  # the reward of each action
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

    config.evaluate.episode_tasks_held_in = len(config.tasks.train)
    config.evaluate.episode_tasks_held_out = len(config.tasks.held_out)
    config.evaluate.trajectories = 8  # avg@8 and best@8
    config.evaluate.best_of = 8
    config.evaluate.steps = STEPS
    config.evaluate.minutes = 30.0
    return config
