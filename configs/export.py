"""Export a trained policy to a Hugging Face folder, in the workdir of the run that trained it.

python -m mlagent_jax.train --config=configs/export.py --workdir=runs/rl
"""

from ml_collections import ConfigDict

from configs import rl


def get_config() -> ConfigDict:
    config = rl.get_config()
    config.stages = ("export",)
    return config
