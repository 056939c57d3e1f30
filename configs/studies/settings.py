"""What all runs of the studies begin with: the quickstart with half of its RL, and more actions a fixed state.

An arm changes a few of these (the studies beside this file say which); `mlagent_jax.study` sets stages and folders.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.rl.iterations = 24
    config.evaluate.samples = 8
    config.evaluate.trajectories = 6
    config.export.dtype = "float32"  # arms begin with the very parameters of their start
    return config
