"""`python -m mlagent_jax.algorithms`: print all algorithms that a config may name, with their parameters."""

from mlagent_jax.algorithms.corrections import CORRECTIONS
from mlagent_jax.algorithms.estimators import ESTIMATORS
from mlagent_jax.algorithms.kl import KL_CONTROLLERS
from mlagent_jax.algorithms.policy_losses import POLICY_LOSSES

REGISTRIES = {
    "rl.estimator": ESTIMATORS,
    "rl.loss": POLICY_LOSSES,
    "rl.corrections": CORRECTIONS,
    "rl.kl_controller": KL_CONTROLLERS,
}

if __name__ == "__main__":
    print("\n\n".join(f"config.{field}\n{registry.describe()}" for field, registry in REGISTRIES.items()))
