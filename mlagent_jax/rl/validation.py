"""Evaluation during rl: the current policy in the same states, with the same random draws."""

from __future__ import annotations

import time
from typing import Any

from mlagent_jax.agents.actor import Actor
from mlagent_jax.rl.scalars import outcome_scalars
from mlagent_jax.runs.fixed_states import fixed_states
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime.errors import ConfigError


class Validation:
    """Validations of a run, by `config.validation`.

    Args:
      run: an open run.
      actor: actor that samples with given parameters.

    Attributes:
      history: metric of each validation so far, higher is better.

    Raises:
      ConfigError: there are no states of the chosen split.
    """

    def __init__(self, run: Run, actor: Actor) -> None:
        self._run, self._actor, self._config = run, actor, run.config.validation
        config = self._config
        self._states = fixed_states(run, config.split, config.states, actor.renderer.fits) if config.every else []
        self.history: list[float] = []
        if config.every and not self._states:
            raise ConfigError(
                f"config.validation.split is {config.split!r}, and nothing was collected in such states: choose the "
                "other one, or set config.validation.every to 0"
            )

    def is_due(self, iteration: int) -> bool:
        """Return whether to evaluate after `iteration` iterations: at the interval, and at the end."""
        every = self._config.every
        return bool(every) and (iteration % every == 0 or iteration == self._run.config.rl.iterations)

    def measure(self, policy: Any, iteration: int) -> dict[str, float]:
        """Evaluate the parameters after `iteration` iterations; return scalars, and record the metric.

        Raises:
          Stopped: the run must end. The same call after a restart finds the executed results in the queue.
        """
        started = time.monotonic()
        actions = self._actor.act(policy, self._states, self._config.samples, "validation")
        self._actor.release()
        # Negative sample indices: jobs of batches have none.
        jobs = [
            self._run.job(
                action.state, action, version=iteration, sample=-place, reward=self._run.config.evaluate.reward
            )
            for place, action in enumerate(actions, 1)
        ]
        scalars = outcome_scalars(self._run.job_client.gather(jobs))
        self.history.append(scalars[self._config.metric])
        told = {f"validation_{name}": scalars[name] for name in ("reward", "valid")}
        return told | {"seconds_validation": time.monotonic() - started}

    @property
    def has_converged(self) -> bool:
        """Return whether none of the last `patience` validations beat the best before them; False if patience is 0."""
        patience, history = self._config.patience, self.history
        return bool(patience) and len(history) > patience and max(history[-patience:]) <= max(history[:-patience])
