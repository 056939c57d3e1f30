"""Checks of the RL algorithms in a config, and of their combinations."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from environments.registry import Registry, RegistryError
from mlagent_jax.runtime.errors import ConfigError

if TYPE_CHECKING:
    from mlagent_jax.settings.schema import Config


def check_algorithms(config: Config) -> None:
    """Check estimator, loss, corrections and controller: names, parameters and combinations.

    On a host without JAX, which only launches runs, the trainer checks names and combinations later.

    Raises:
      ConfigError: A name or parameter is unknown, or a combination is not allowed; the message has the remedy.
    """
    rl = config.rl
    if not 1 <= rl.best_of <= rl.samples:
        raise ConfigError(f"config.rl.best_of is {rl.best_of}; it is from 1 to config.rl.samples, {rl.samples}")
    if not 0.0 <= rl.best_of_weight <= 1.0:
        raise ConfigError(f"config.rl.best_of_weight is {rl.best_of_weight}; it is from 0 to 1")
    if importlib.util.find_spec("jax") is None:
        return
    # JAX takes half a second to import, and most programs with this module check no config.
    from mlagent_jax.algorithms import combinations
    from mlagent_jax.algorithms.corrections import CORRECTIONS
    from mlagent_jax.algorithms.estimators import ESTIMATORS
    from mlagent_jax.algorithms.kl import KL_CONTROLLERS
    from mlagent_jax.algorithms.policy_losses import POLICY_LOSSES

    estimator = _chosen("estimator", ESTIMATORS, rl.estimator)
    _chosen("loss", POLICY_LOSSES, rl.loss)
    controller = _chosen("kl_controller", KL_CONTROLLERS, rl.kl_controller)
    for correction in rl.corrections.split("+"):
        _chosen("corrections", CORRECTIONS, correction)
    if controller == "adaptive" and not rl.kl_coefficient:
        raise ConfigError("config.rl.kl_coefficient is 0; an adaptive one (config.rl.kl_controller) starts above 0")
    normalisation = rl.normalisation
    why = combinations.refusal(
        estimator=estimator,
        normalisation=combinations.own_normalisation(estimator) if normalisation == "auto" else normalisation,
        best_of=rl.best_of if rl.best_of_weight else 1,
        kl_in=rl.kl_in,
        kl_estimator=rl.kl_estimator,
        kl_coefficient=rl.kl_coefficient,
        rollout=rl.rollout,
        samples=rl.samples,
        critic=rl.critic,
    )
    if why:
        raise ConfigError(f"config.rl.{why}")
    if estimator != "gae" and (rl.critic_warmup or rl.critic_pretraining) and estimator in combinations.NORMALISED:
        raise ConfigError(
            f"config.rl.critic_warmup is {rl.critic_warmup}, critic_pretraining {rl.critic_pretraining} and estimator "
            f"{estimator!r}, which reads no critic: set them to 0, or estimator to 'gae'"
        )
    if rl.critic_pretraining and rl.best_of > 1 and rl.best_of_weight:
        raise ConfigError(
            f"config.rl.critic_pretraining is {rl.critic_pretraining} and best_of {rl.best_of}: what one of the "
            "expert's steps adds to the best of several is not known. Set best_of to 1, or critic_pretraining to 0 "
            "(critic_warmup learns from actions of the policy)"
        )


def _chosen(field: str, registry: Registry, choice: str) -> str:
    """Return the name in a valid choice."""
    try:
        return registry.choose(choice).name
    except RegistryError as error:
        raise ConfigError(f"config.rl.{field}: {error}") from error
