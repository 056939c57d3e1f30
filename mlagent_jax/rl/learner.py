"""Update on a batch: rewards -> advantages -> steps of the policy loss with a KL to the reference policy.

The `Learner` holds the arrays in training. `rl.stage` calls it once per iteration, `rl.ppo` has its programs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.algorithms.corrections import effective_sample_share
from mlagent_jax.algorithms.estimators import ESTIMATORS
from mlagent_jax.algorithms.kl import KL_CONTROLLERS
from mlagent_jax.algorithms.means import Means, added
from mlagent_jax.algorithms.values import explained_variance
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.models.packing import Sample
from mlagent_jax.optim.optimizer import init_state
from mlagent_jax.rl import ppo
from mlagent_jax.rl.checks import check_divergence, check_ratio, check_sampler, warn_of_mismatch
from mlagent_jax.rl.in_flight import TrainingRow
from mlagent_jax.rl.rows import Passes, RowPacker, place
from mlagent_jax.rl.scalars import silent_groups
from mlagent_jax.rl.tracker import ValueTracker
from mlagent_jax.runs.policies import Policy, Training, abstract
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime import processes
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config


def batch_of(config: Config, taken: Sequence[TrainingRow], baselines: Sequence[float] | None = None) -> ppo.Batch:
    """Return the batch of the rows `taken`, padded with masked rows to the config's size.

    Episodes that ended early leave rows unused; padding keeps the shape constant. With `duration_weighting`, rows are
    weighted by their execution times. Rows of silent groups are masked unless `silent_groups` is "keep".

    Args:
      config: Settings of the run.
      taken: Rows to train on.
      baselines: Tracked mean reward of each row's state; None: 0.

    Raises:
      ConfigError: `taken` has more rows than the config's batch.
    """
    rl = config.rl
    silent = set() if rl.silent_groups == "keep" else silent_groups(taken)
    rewards = [None if row.group in silent else row.reward for row in taken]
    size = rl.states * rl.samples * (rl.episode_steps if rl.rollout == "episode" else 1)
    missing = size - len(taken)
    if missing < 0:
        raise ConfigError(
            f"the batch has {len(taken)} rows, and config.rl.states * samples is {size}: replay it with the "
            "settings that it was saved with"
        )
    seconds = [None if r is None else row.outcome.seconds for r, row in zip(rewards, taken, strict=True)]
    return ppo.make_batch(
        [*(row.action.tokens for row in taken), *[()] * missing],
        [*(row.action.log_probs for row in taken), *[()] * missing],
        [*rewards, *[None] * missing],
        [*(row.group for row in taken), *[-1] * missing],
        action_tokens=config.prompt.max_action_tokens,
        weights=ppo.duration_weights(seconds + [None] * missing) if rl.duration_weighting else None,
        baselines=None if baselines is None else [*baselines, *[0.0] * missing],
    )


def minibatches(groups: Sequence[int], counted: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Split the counted rows into at most `count` mini-batches of about equal size.

    Groups are taken in random order. The actions of one group stay adjacent, so that their prompt is computed once; a
    boundary between two mini-batches may split one group.

    Args:
      groups: Group of each row.
      counted: bool [batch], True for rows that are not masked.
      count: Maximum number of mini-batches.
      rng: Source of the order.

    Returns:
      The row indices of each mini-batch, int64.
    """
    rows: dict[int, list[int]] = {}
    for index in np.flatnonzero(counted):
        rows.setdefault(int(groups[index]), []).append(int(index))
    order = rng.permutation(len(rows))
    found = list(rows.values())
    mixed = np.asarray([index for place in order for index in found[place]], np.int64)
    return [part for part in np.array_split(mixed, count) if len(part)]


class Learner:
    """Parameters in training with the optimizer's state, the reference, the KL coefficient, and tracked values.

    Args:
      run: The run.
      policy: Policy of the SFT stage, which is the first reference.
      trained: The same policy in training. The learner takes over its arrays and donates them to the first update.
      dispatch_lock: Lock held while a program is dispatched to the devices.

    Attributes:
      params: Trained parameters {"policy", "critic"}; donated to each update.
      tracker: Tracked values of states; None if the estimator uses none.
    """

    def __init__(
        self, run: Run, policy: Policy, trained: Training, dispatch_lock: contextlib.AbstractContextManager[Any]
    ) -> None:
        self._run, self._config, self._dispatch_lock = run, run.config.rl, dispatch_lock
        settings = run.config.policy
        self._model = ppo.Model(
            trained.graph, run.config.sampling.temperature, settings.compute_dtype, settings.remat, policy.graph
        )
        self._reference_model = dataclasses.replace(self._model, graph=policy.graph)
        self._optimizer = ppo.rl_optimizer(self._config, run.config.optimizer)
        self._packer = RowPacker(
            *(run.config, policy.tokenizer.pad_id, policy.config.hidden_size, run.devices.row_shards),
            single="cudnn" in (trained.graph.attention, policy.graph.attention),
        )
        backbone = policy.params if self._config.critic == "separate" else None
        critic = ppo.init_critic(policy.config.hidden_size, backbone)
        critic |= {name: processes.everywhere(critic[name]) for name in critic.keys() - {"backbone"}}
        # A refreshed reference is a copy of the trained parameters and is scored like them. With adapters, the
        # reference is the base. Otherwise it is a copy in the compute dtype, since the parameters are donated.
        self._follows = bool(self._config.reference_every)
        if self._follows:
            self._reference = _copied(trained.params)
        else:
            self._reference = trained.base or _copied(policy.params, settings.compute_dtype)
        self.params: Any = {"policy": trained.params, "critic": critic}
        self._trained = trained.without_params()
        self._state: Any = init_state(self._optimizer, self.params, run.config.optimizer.placement)
        self._kl_coefficient = self._config.kl_coefficient
        self._controller = KL_CONTROLLERS.choose(self._config.kl_controller)
        estimator = ESTIMATORS.choose(self._config.estimator)
        self.tracker = (
            ValueTracker(*(estimator[name] for name in ("half_life", "low", "high")))
            if estimator.name == "single_stream"
            else None
        )

    def batch(self, taken: Sequence[TrainingRow]) -> ppo.Batch:
        """Return the batch of the rows `taken`, with the tracked values of their states."""
        return batch_of(self._run.config, taken, None if self.tracker is None else self.tracker.baselines(taken))

    def update(self, batch: ppo.Batch, taken: Sequence[TrainingRow], iteration: int) -> dict[str, float]:
        """Take all epochs and mini-batches of one batch; return the means of their metrics.

        A batch whose rows are all masked changes no parameter, not even the optimizer's moments.

        Args:
          batch: The batch, from `batch`.
          taken: Its rows.
          iteration: Index of the iteration.

        Raises:
          DivergedError: A metric is NaN or infinite, the KL to the reference exceeds `max_kl`, or the log-probs of
            sampler and trainer disagree (`rl.checks`).
        """
        every = self._config.reference_every
        if every and iteration and iteration % every == 0:
            self._reference = _copied(self.params["policy"])
        if not batch.mask.any():
            zeros = dict.fromkeys(("kl", "policy_loss", "value_loss", "entropy", "grad_norm"), 0.0)
            return zeros | {"kl_coefficient": self._kl_coefficient}
        config, params = self._config, self.params
        samples = [Sample(row.action.prompt, row.action.tokens) for row in taken]
        counted = batch.mask.any(axis=1)
        size = len(batch.rewards)
        placed = jax.tree.map(processes.everywhere, batch)
        passes = self._passes(samples, np.flatnonzero(counted), size)
        whole = self._trained.whole(params["policy"])
        coefficient, none = np.float32(self._kl_coefficient), np.float32(0.0)
        with self._dispatch_lock:
            proximal = ppo.score(self._model, whole, params["critic"], placed, passes)
            reference = self._reference_scores(placed, passes)
            targets = ppo.make_targets(placed, proximal, reference, config, coefficient)
        if not config.replay:  # the versions of replayed rows belong to another run
            check_sampler(self._run, iteration, batch, processes.fetch(proximal.log_probs), taken)
        steps: list[Means] = []
        rng = np.random.default_rng([self._run.config.seed, iteration, 1])
        for _ in range(config.epochs):
            for chosen in minibatches(batch.groups, counted, config.minibatches, rng):
                passes = self._passes(samples, chosen, -(-size // config.minibatches))
                with self._dispatch_lock:
                    self.params, self._state, metrics = ppo.ppo_step(
                        self.params,
                        self._state,
                        placed,
                        targets,
                        passes,
                        coefficient if config.kl_in == "loss" else none,
                        model=self._model,
                        optimizer=self._optimizer,
                        config=config,
                        base=self._trained.base,
                        critic_only=iteration < config.critic_warmup,
                    )
                steps.append(metrics)
        # Read after all steps are dispatched, so that no step waits for the host.
        read = [metrics.read() for metrics in steps]
        first, totals = read[0], added(read)
        values = {name: float(mean.value) for name, mean in totals.items()}
        if targets.returns is not None:
            values["explained_variance"] = explained_variance(totals)
        values["kl_coefficient"] = self._kl_coefficient
        values["effective_samples"] = effective_sample_share(totals)
        check_divergence(self._run, iteration, values, taken)
        check_ratio(self._run, iteration, float(first["log_ratio_abs"].value))
        warn_of_mismatch(iteration, values)
        self._kl_coefficient = self._controller(self._kl_coefficient, values["kl"])
        if self.tracker is not None:
            self.tracker.learn(taken, values["kl_old"])
        return values

    def pretrain(self, batches: Iterable[tuple[ppo.Batch, Sequence[Sample]]]) -> dict[str, float]:
        """Train only the critic, one step per batch.

        Args:
          batches: Batches with their samples, see `rl.pretraining`.

        Returns:
          `explained_variance` over the first and the last tenth of the batches, measured before each step.
        """
        explained: list[Means] = []
        for batch, samples in batches:
            placed = jax.tree.map(processes.everywhere, batch)
            passes = self._passes(samples, range(len(samples)), len(samples))
            whole = self._trained.whole(self.params["policy"])
            scores = ppo.score(self._model, whole, self.params["critic"], placed, passes)
            # The expert's log-probs are unknown. The policy's own replace them, which is safe: only values are trained.
            own = dataclasses.replace(placed, behaviour_log_probs=scores.log_probs)
            targets = ppo.make_targets(own, scores, scores, self._config)
            self.params, self._state, metrics = ppo.ppo_step(
                self.params,
                self._state,
                own,
                targets,
                passes,
                np.float32(0.0),
                model=self._model,
                optimizer=self._optimizer,
                config=self._config,
                base=self._trained.base,
                critic_only=True,
            )
            explained.append(metrics)
        share = max(1, len(explained) // 10)
        ends = {"before": explained[:share], "after": explained[-share:]}
        sums = {name: added([metrics.read() for metrics in part]) for name, part in ends.items()}
        return {f"explained_variance_{name}": explained_variance(part) for name, part in sums.items()}

    def _passes(self, samples: Sequence[Sample], chosen: Sequence[int], size: int) -> Passes:
        """Return packed rows of the chosen samples on the devices, in a shape that holds any `size` samples."""
        return place(self._packer.pack(samples, chosen, size), self._run.devices)

    def _reference_scores(self, placed: ppo.Batch, passes: Passes) -> ppo.Scores:
        """Return the scores of a batch under the reference."""
        if self._follows:
            return ppo.score(self._model, self._trained.whole(self._reference), None, placed, passes)
        return ppo.score(self._reference_model, self._reference, None, placed, passes)

    # -- checkpoints --

    def arrays(self) -> dict[str, Any]:
        """Return the device arrays that a resume needs."""
        kept = {"reference": self._reference} if self._follows else {}
        return {**self.params, "optimizer": self._state, **kept}

    def to_dict(self) -> dict[str, Any]:
        """Return the state that a resume needs in addition to `arrays`."""
        tracked = {} if self.tracker is None else {"tracker": self.tracker.to_dict()}
        return {"kl": {"coefficient": self._kl_coefficient}, "shapes": self._packer.shapes.to_list(), **tracked}

    def restore(self, saved: Checkpointer, step: int) -> dict[str, Any]:
        """Restore the checkpoint of `step`; return its contents other than the arrays."""
        wanted = abstract(self.arrays())
        self.params = self._state = None  # freed before restoring: both copies would not fit
        if self._follows:
            self._reference = None
        arrays, extra = saved.restore(step, wanted)
        self.params = {name: arrays[name] for name in ("policy", "critic")}
        self._state = arrays["optimizer"]
        if self._follows:
            self._reference = arrays["reference"]
        self._packer.shapes.restore(extra.get("shapes", ()))  # older checkpoints have none: shapes are chosen anew
        self._kl_coefficient = extra["kl"]["coefficient"]
        if self.tracker is not None:
            self.tracker.restore(extra["tracker"])
        return extra


def _copied(params: Any, dtype: str | None = None) -> Any:
    """Return copies of arrays, in `dtype` if that is narrower than an array's own dtype."""

    def one(leaf: jax.Array) -> jax.Array:
        smaller = dtype is not None and jnp.dtype(dtype).itemsize < leaf.dtype.itemsize
        return leaf.astype(dtype) if smaller else jnp.copy(leaf)

    return jax.tree.map(one, params)
