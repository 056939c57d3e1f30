"""What is learned of a batch: rewards -> advantages -> clipped PPO steps with a KL to the SFT policy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.optim.optimizer import init_state
from mlagent_jax.rl import kl as controllers
from mlagent_jax.rl import losses, ppo
from mlagent_jax.rl.checks import check_divergence, check_ratio, check_sampler
from mlagent_jax.rl.in_flight import Taken
from mlagent_jax.runs.policies import Policy, Training, abstract
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import processes
from mlagent_jax.settings.schema import Config, RLConfig


def batch_of(config: Config, pad_id: int, taken: Sequence[Taken]) -> ppo.Batch:
    """Rows of `taken`, filled up with masked ones where episodes ended early: the shape stays the same.

    Where durations count, a row's weight is of the seconds of its execution alone.
    """
    rl = config.rl
    size = rl.states * rl.samples * (rl.episode_steps if rl.rollout == "episode" else 1)
    missing = size - len(taken)
    seconds = [None if row.reward is None else row.outcome.seconds for row in taken]
    return ppo.make_batch(
        [*(row.action.prompt for row in taken), *[(pad_id,)] * missing],
        [*(row.action.tokens for row in taken), *[()] * missing],
        [*(row.action.log_probs for row in taken), *[()] * missing],
        [*(row.reward for row in taken), *[None] * missing],
        [*(row.group for row in taken), *[-1] * missing],
        pad_id=pad_id,
        action_tokens=config.prompt.max_action_tokens,
        weights=ppo.duration_weights(seconds + [None] * missing) if rl.duration_weighting else None,
    )


class Learner:
    """The parameters in training, the optimizer's state and the KL controller.

    Args:
      run: open.
      policy: of the SFT stage, the reference.
      trained: that policy in training.
      turn: held while a program is handed to the devices.

    Attributes:
      params: what is trained, of the `policy` and of the `critic`; donated to each update.
    """

    def __init__(
        self, run: Run, policy: Policy, trained: Training, turn: contextlib.AbstractContextManager[Any]
    ) -> None:
        self._run, self._config, self._policy, self._trained, self._turn = run, run.config.rl, policy, trained, turn
        settings = run.config.policy
        self._model = ppo.Model(
            trained.graph, run.config.sampling.temperature, settings.compute_dtype, settings.remat, policy.graph
        )
        self._reference_model = dataclasses.replace(self._model, graph=policy.graph)
        self._optimizer = ppo.rl_optimizer(self._config, run.config.optimizer)
        # A copy: the parameters are donated to the update, the reference (the policy) must outlive it. Of adapters it
        # is little, and the reference is the base that they are trained on.
        backbone = policy.params if self._config.critic == "separate" else None
        critic = ppo.init_critic(policy.config.hidden_size, backbone)
        critic |= {name: processes.everywhere(critic[name]) for name in critic.keys() - {"backbone"}}
        self.params: Any = {"policy": jax.tree.map(jnp.copy, trained.params), "critic": critic}
        self._state: Any = init_state(self._optimizer, self.params, run.config.optimizer.placement)
        self._kl = (
            controllers.AdaptiveKL(self._config.kl_coefficient, self._config.kl_target)
            if self._config.kl_target
            else controllers.FixedKL(self._config.kl_coefficient)
        )

    def update(self, batch: ppo.Batch, taken: Sequence[Taken], iteration: int) -> dict[str, float]:
        """All epochs and mini-batches of one batch, in the iteration of this index; returns means over them.

        Raises:
          DivergedError: NaN, or more than `max_kl` from the reference; the batch is saved first.
        """
        config, params = self._with_micro_rows(len(batch.rewards) // self._config.minibatches, batch), self.params
        whole_batch = self._with_micro_rows(len(batch.rewards), batch).micro_batch
        placed = self._run.devices.place(batch)
        whole = self._trained.whole(params["policy"])
        coefficient = np.float32(self._kl.coefficient)
        with self._turn:
            proximal = ppo.score(self._model, whole, params["critic"], placed, whole_batch)
            reference = ppo.score(self._reference_model, self._policy.params, None, placed, whole_batch)
            targets = ppo.make_targets(placed, proximal, reference, config, coefficient)
        check_sampler(self._run, iteration, batch, processes.fetch(proximal.log_probs), taken)
        totals: dict[str, losses.Mean] = {}
        first: dict[str, losses.Mean] = {}
        rng = np.random.default_rng([self._run.config.seed, iteration, 1])
        for _ in range(config.epochs):
            for rows in np.split(rng.permutation(len(batch.rewards)), config.minibatches):
                with self._turn:
                    self.params, self._state, metrics = ppo.ppo_step(
                        self.params,
                        self._state,
                        *self._run.devices.rows((placed, targets), rows),
                        coefficient if config.kl_in == "loss" else np.float32(0.0),
                        model=self._model,
                        optimizer=self._optimizer,
                        config=config,
                        base=self._trained.base,
                    )
                first = first or metrics
                totals = metrics if not totals else {name: totals[name] + metrics[name] for name in totals}
        values = {name: float(mean.value) for name, mean in totals.items()}
        values["explained_variance"] = losses.explained_variance(totals)
        values["kl_coefficient"] = self._kl.coefficient
        check_divergence(self._run, iteration, values, taken)
        check_ratio(self._run, iteration, float(first["log_ratio_abs"].value))
        self._kl = self._kl.update(values["kl"])
        return values

    def _with_micro_rows(self, rows: int, batch: ppo.Batch) -> RLConfig:
        """The settings with a token budget turned into rows, for passes over `rows` of the batch's rows."""
        micro = ppo.micro_rows(self._config, rows, batch.tokens.shape[1], self._run.devices.row_shards)
        return dataclasses.replace(self._config, micro_batch=micro)

    # -- checkpoints --

    def arrays(self) -> dict[str, Any]:
        """What a resume needs, on the devices."""
        return {**self.params, "optimizer": self._state}

    def to_dict(self) -> dict[str, Any]:
        """What it needs besides."""
        return {"kl": controllers.to_dict(self._kl)}

    def restore(self, saved: Checkpointer, step: int) -> dict[str, Any]:
        """Go on from the checkpoint of `step`; returns all that it holds beside the arrays."""
        wanted = abstract(self.arrays())
        self.params = self._state = None  # freed before the restored ones are made: both would not fit
        arrays, extra = saved.restore(step, wanted)
        self.params = {name: arrays[name] for name in ("policy", "critic")}
        self._state = arrays["optimizer"]
        self._kl = controllers.from_dict(extra["kl"])
        return extra
