"""Step-wise PPO on the device: score a batch, turn rewards into advantages, take clipped steps.

    Batch, Passes -> score -> Scores -> make_targets -> Targets -> ppo_step -> parameters, metrics

The time steps are the tokens of an action. The reward falls on the last token, which is terminal: there is no
bootstrap, even if the action was truncated. Loss terms and estimators come from `mlagent_jax.algorithms`; this module
evaluates the model for them. Arrays per action are [batch, action]. The model reads the tokens in packed rows
(`rl.rows`), in which the actions of one prompt share one copy of it; rows are processed pass by pass.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlagent_jax import models
from mlagent_jax.algorithms import combinations
from mlagent_jax.algorithms.corrections import correction_weights
from mlagent_jax.algorithms.estimators import ESTIMATORS, Rewards, normalise, place_on_last
from mlagent_jax.algorithms.kl import kl, token_kl
from mlagent_jax.algorithms.max_at_k import best_of
from mlagent_jax.algorithms.means import Mean, Means, aggregate
from mlagent_jax.algorithms.policy_losses import POLICY_LOSSES, policy_loss
from mlagent_jax.algorithms.values import value_loss
from mlagent_jax.models import lora
from mlagent_jax.optim.accumulation import summed_over
from mlagent_jax.optim.config import OptimizerConfig
from mlagent_jax.optim.optimizer import adam, apply, clipped
from mlagent_jax.rl.rows import Passes
from mlagent_jax.settings.stages import RLConfig

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Actions with their rewards, replicated on every device. The tokens are in `rl.rows.Passes`."""

    mask: jax.Array  # bool [batch, action], True on action tokens; all False if the outcome is masked
    behaviour_log_probs: jax.Array  # float32 [batch, action], under the policy that sampled
    rewards: jax.Array  # float32 [batch]
    groups: jax.Array  # int32 [batch], equal for actions of one state
    weights: jax.Array  # float32 [batch], factor of an action in the policy's gradient; see `duration_weights`
    baselines: jax.Array  # float32 [batch], tracked mean reward of the state (`rl.tracker`); 0 without tracking


def make_batch(
    actions: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[float]],
    rewards: Sequence[float | None],
    groups: Sequence[int],
    *,
    action_tokens: int,
    weights: Sequence[float] | None = None,
    baselines: Sequence[float] | None = None,
) -> Batch:
    """Return a batch as host arrays; a reward of None (an infrastructure error) masks its row.

    Args:
      actions: Tokens of each action, at most `action_tokens`.
      log_probs: Log-probability of each of those tokens under the policy that sampled it.
      rewards: Reward of each action.
      groups: Number of each action's group; actions from one state have equal numbers.
      action_tokens: Width of the arrays.
      weights: Factor of each action in the policy's gradient; None: 1.
      baselines: Tracked mean reward of each action's state; None: 0.
    """
    size = len(actions)
    mask = np.zeros((size, action_tokens), bool)
    behaviour = np.zeros((size, action_tokens), np.float32)
    for row, (action, lps) in enumerate(zip(actions, log_probs, strict=True)):
        behaviour[row, : len(action)] = lps
        mask[row, : len(action)] = rewards[row] is not None
    return Batch(
        mask=mask,
        behaviour_log_probs=behaviour,
        rewards=np.asarray([0.0 if r is None else r for r in rewards], np.float32),
        groups=np.asarray(groups, np.int32),
        weights=np.ones(size, np.float32) if weights is None else np.asarray(weights, np.float32),
        baselines=np.zeros(size, np.float32) if baselines is None else np.asarray(baselines, np.float32),
    )


MIN_DURATION_WEIGHT = 0.1
"""Lower bound of a weight. An action that never ran (one that does not parse) took no time; with a weight of 0 the
policy could not unlearn it."""


def duration_weights(seconds: Sequence[float | None]) -> list[float]:
    """Return weights of actions in the policy's gradient, by their execution times (arXiv 2509.01684).

        w_i = max(seconds_i / mean(seconds), 0.1)

    Asynchronous workers return an action that takes `seconds` at a rate of 1 / seconds. Fast actions, failures above
    all, are thus more frequent among the results than among the samples; the weights correct for that.

    Args:
      seconds: Execution time of each action; None: the action is masked. Its weight is 0, and the mean excludes it.
    """
    known = [value for value in seconds if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    if mean <= 0:
        return [0.0 if value is None else 1.0 for value in seconds]
    return [0.0 if value is None else max(value / mean, MIN_DURATION_WEIGHT) for value in seconds]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """Outputs of a policy and its critic at a batch's action tokens, all float32 [batch, action]."""

    log_probs: jax.Array
    entropy: jax.Array
    values: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """Targets of an update, fixed for all epochs of a batch; float32 [batch, action]."""

    log_probs: jax.Array  # under the proximal policy, the parameters before the first step
    values: jax.Array
    reference_log_probs: jax.Array
    advantages: jax.Array
    returns: jax.Array | None  # None: the estimator uses no critic, so none is trained


def init_critic(hidden_size: int, backbone: Params | None = None) -> Params:
    """Return a value head of zeros, with which the first advantages equal the rewards.

    Args:
      hidden_size: Width of the backbone.
      backbone: Initial parameters of a separate critic's backbone, which are copied; None: the critic reads the
        policy's hidden states.
    """
    head = {"kernel": jnp.zeros((hidden_size,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}
    return head if backbone is None else head | {"backbone": jax.tree.map(jnp.copy, backbone)}


@dataclasses.dataclass(frozen=True)
class Model:
    """Static settings of scoring; hashable, so that it is a static argument of jitted functions."""

    graph: Any
    temperature: float
    compute_dtype: str
    remat: str
    critic_graph: Any = None
    """Graph of a separate critic's backbone; None: the policy's graph."""


def _deciding_states(model: Model, graph: Any, params: Params, rows: Passes) -> jax.Array:
    """Return the hidden states that predict a pass's action tokens, [rows, decisions, hidden].

    Only these states are multiplied by the vocabulary.
    """
    if rows.single:  # for kernels without segments; at least 1, since attention over no key is NaN
        layout = {"lengths": jnp.maximum(jnp.sum(rows.segment_ids > 0, axis=1), 1)}
    else:
        names = ("positions", "segment_ids", "prompt_ids")
        layout = {name: getattr(rows, name) for name in names}
    hidden = models.hidden_states(
        graph, params, rows.tokens, remat=model.remat, compute_dtype=jnp.dtype(model.compute_dtype), **layout
    )
    return jnp.take_along_axis(hidden, rows.at[:, :, None], axis=1)


def _score(model: Model, policy: Params, critic: Params | None, rows: Passes, shape: tuple[int, int]) -> Scores:
    """Score the actions of one pass; all other positions of `shape` (batch, action) are 0."""
    hidden = _deciding_states(model, model.graph, policy, rows)
    log_probs, entropy = models.token_log_probs(
        model.graph, policy, hidden, rows.targets, temperature=model.temperature
    )
    if critic is None:
        values = jnp.zeros_like(log_probs)
    else:
        if "backbone" in critic:
            hidden = _deciding_states(model, model.critic_graph or model.graph, critic["backbone"], rows)
        values = hidden.astype(jnp.float32) @ critic["kernel"] + critic["bias"]
    return Scores(*(rows.by_action(each, shape) for each in (log_probs, entropy, values)))


@functools.partial(jax.jit, static_argnames=("model",))
def score(model: Model, policy: Params, critic: Params | None, batch: Batch, passes: Passes) -> Scores:
    """Score a batch, pass by pass; an action that is in no pass gets 0.

    Called for the log-probs and values of the proximal policy, and for the log-probs of the reference.
    """
    # Each token is in one pass, so the sum over passes collects every score.
    of_pass = functools.partial(_score, model, policy, critic, shape=batch.mask.shape)
    return summed_over(of_pass, passes.each, passes.count)


@functools.partial(jax.jit, static_argnames=("config",))
def make_targets(
    batch: Batch, proximal: Scores, reference: Scores, config: RLConfig, kl_coefficient: float | jax.Array = 0.0
) -> Targets:
    """Compute advantages with the configured estimator, normalise them over the global batch, and compute returns.

    With `kl_in` = reward, `kl_coefficient` times a token's KL to the reference is subtracted from its reward.

    With `best_of` = k > 1 and `best_of_weight` = w, the objective is (1 - w) E[r] + w E[max of k rewards]. The reward
    of the second term is k times the action's contribution to the maximum, see `algorithms.max_at_k.best_of`.
    """
    rows = jnp.any(batch.mask, axis=1)
    weight = config.best_of_weight if config.best_of > 1 else 0.0
    mean_part = (1 - weight) * batch.rewards
    added = weight * config.best_of * best_of(batch.rewards, batch.groups, rows, config.best_of)
    token_rewards = place_on_last(mean_part + added, batch.mask)
    if config.kl_in == "reward":
        divergence = kl(proximal.log_probs, reference.log_probs, config.kl_estimator)
        penalty = jnp.where(batch.mask, kl_coefficient * divergence, 0.0)
        token_rewards, mean_part = token_rewards - penalty, mean_part - jnp.sum(penalty, axis=1)
    rewards = Rewards(mean_part, added, token_rewards, proximal.values, batch.mask, batch.groups, batch.baselines)
    estimator = ESTIMATORS.choose(config.estimator)
    advantages, returns = estimator(rewards)
    kind = config.normalisation
    kind = combinations.own_normalisation(estimator.name) if kind == "auto" else kind
    return Targets(
        log_probs=proximal.log_probs,
        values=proximal.values,
        reference_log_probs=reference.log_probs,
        advantages=normalise(advantages, rewards, kind),
        returns=returns,
    )


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "config", "critic_only"), donate_argnums=(0, 1))
def ppo_step(
    params: Params,
    opt_state: optax.OptState,
    batch: Batch,
    targets: Targets,
    passes: Passes,
    kl_coefficient: jax.Array,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: RLConfig,
    base: Params | None = None,
    critic_only: bool = False,
) -> tuple[Params, optax.OptState, Means]:
    """Take one optimizer step on the actions of a batch that are in `passes`.

        L = L_policy + value_coefficient * L_value + kl_coefficient * KL(policy || reference) - entropy_coefficient * H

    Args:
      params: Trained parameters {"policy", "critic"}; donated.
      opt_state: State of the optimizer; donated.
      batch: The whole batch.
      targets: Targets of the whole batch.
      passes: Packed rows of the actions to train on.
      kl_coefficient: float32 [], weight of the KL in the loss; 0 if the KL is in the reward.
      model: Static settings of scoring.
      optimizer: See `rl_optimizer`.
      config: Settings of the stage.
      base: Frozen base weights; `params["policy"]` then holds LoRA adapters, and `model` has their graph.
      critic_only: Whether the policy and its moments stay unchanged.

    Returns:
      Parameters, state of the optimizer, and metrics as (total, count) pairs over the tokens or actions of each mean.
    """

    def loss(params: Params, rows: Passes) -> tuple[jax.Array, dict[str, Mean]]:
        whole = params["policy"] if base is None else lora.join(base, params["policy"])
        scores = _score(model, whole, params["critic"], rows, batch.mask.shape)
        mask = batch.mask & rows.by_action(jnp.ones(rows.entries.shape, bool), batch.mask.shape)
        weights, weight_metrics = correction_weights(
            config.corrections, targets.log_probs, batch.behaviour_log_probs, mask
        )
        policy, metrics = policy_loss(
            POLICY_LOSSES.choose(config.loss),
            scores.log_probs,
            targets.log_probs,
            targets.advantages * batch.weights[:, None],
            mask,
            weights=weights,
            aggregation=config.aggregation,
        )
        if targets.returns is None:
            value, value_metrics = Mean(jnp.zeros(()), policy.count), {}
        else:
            value, value_metrics = value_loss(
                scores.values,
                targets.values,
                targets.returns,
                mask,
                clip=config.value_clip or None,
                aggregation=config.aggregation,
            )
        divergences = token_kl(
            scores.log_probs, targets.reference_log_probs, mask, config.kl_estimator, batch.behaviour_log_probs
        )
        divergence = aggregate(divergences, mask, config.aggregation)
        entropy = aggregate(scores.entropy, mask, config.aggregation)
        total = (
            policy.total
            + config.value_coefficient * value.total
            + kl_coefficient * divergence.total
            - config.entropy_coefficient * entropy.total
        )
        if config.aggregation == "constant":  # reported as means over tokens
            divergence, entropy = aggregate(divergences, mask), aggregate(scores.entropy, mask)
        terms = {"policy_loss": policy, "value_loss": value, "kl": divergence, "entropy": entropy}
        return total, jax.lax.stop_gradient({**metrics, **weight_metrics, **value_metrics, **terms})

    def gradient(rows: Passes) -> tuple[Params, dict[str, Mean]]:
        grads, sums = jax.grad(loss, has_aux=True)(params, rows)
        return _laid_out(model, grads), sums

    grads, metrics = summed_over(gradient, passes.each, passes.count)
    # All terms have the same count of tokens (or sequences), so one division turns totals into means.
    count = jnp.maximum(metrics["policy_loss"].count, 1.0)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    metrics["grad_norm"] = Mean(optax.tree.norm(grads["policy"]), jnp.ones(()))
    with jax.named_scope("optimizer"):
        new_params, new_state = apply(optimizer, grads, opt_state, params)
    if critic_only:
        new_params = new_params | {"policy": params["policy"]}
        inner = new_state.inner_states | {"policy": opt_state.inner_states["policy"]}
        new_state = new_state._replace(inner_states=inner)
    return new_params, new_state, Means.of(metrics)


def _laid_out(model: Model, grads: Params) -> Params:
    """Return the gradients in the layout of their parameters; a value head is replicated on every device."""
    critic = grads["critic"]
    if "backbone" in critic:
        critic = critic | {"backbone": models.laid_out(model.critic_graph or model.graph, critic["backbone"])}
    return {"policy": models.laid_out(model.graph, grads["policy"]), "critic": critic}


def rl_optimizer(config: RLConfig, keeps: OptimizerConfig | None = None) -> optax.GradientTransformation:
    """Return the optimizer: AdamW with gradient clipping for the policy and a separate critic, Adam for a value head.

    Args:
      config: Learning rates, kind of critic and maximum gradient norm.
      keeps: Settings of the moments; None: the defaults.
    """
    keeps = keeps or OptimizerConfig()
    critic = optax.adam(config.critic_learning_rate)
    if config.critic == "separate":
        critic = clipped(adam(config.critic_learning_rate, keeps), config.max_grad_norm, keeps)
    return optax.multi_transform(
        {"policy": clipped(adam(config.learning_rate, keeps), config.max_grad_norm, keeps), "critic": critic},
        {"policy": "policy", "critic": "critic"},
    )
