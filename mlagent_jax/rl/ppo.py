"""Step-wise PPO on the device: score a batch, turn rewards into advantages, take clipped steps.

A row is one action from one state: its tokens are the time steps, its reward falls on the last of them, which is
terminal (no bootstrap, also where the action was cut). Loss terms and estimators are those of `mlagent_jax.algorithms`;
this module applies the model to them.
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
from mlagent_jax.algorithms.means import Mean, aggregate
from mlagent_jax.algorithms.policy_losses import POLICY_LOSSES, policy_loss
from mlagent_jax.algorithms.values import value_loss
from mlagent_jax.models import lora
from mlagent_jax.optim.accumulation import mapped, summed_gradients
from mlagent_jax.optim.config import OptimizerConfig
from mlagent_jax.optim.optimizer import adam, apply, clipped
from mlagent_jax.settings.stages import RLConfig

Params = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Actions with their prompts, right-padded."""

    tokens: jax.Array  # int32 [batch, time], prompt then action
    prompt_lengths: jax.Array  # int32 [batch], at least 1
    actions: jax.Array  # int32 [batch, action]
    mask: jax.Array  # bool [batch, action], true on action tokens; all false where the outcome is masked
    behaviour_log_probs: jax.Array  # float32 [batch, action], of the policy that sampled
    rewards: jax.Array  # float32 [batch]
    groups: jax.Array  # int32 [batch], equal for actions of one state
    weights: jax.Array  # float32 [batch], how much an action counts in the policy's gradient; 1 but for durations
    baselines: jax.Array  # float32 [batch], tracked mean reward of the state (`rl.tracker`); 0 where none is tracked


def make_batch(
    prompts: Sequence[Sequence[int]],
    actions: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[float]],
    rewards: Sequence[float | None],
    groups: Sequence[int],
    *,
    pad_id: int,
    action_tokens: int,
    weights: Sequence[float] | None = None,
    baselines: Sequence[float] | None = None,
    bucket: int = 64,
) -> Batch:
    """Host arrays of one batch; a reward of None (an infrastructure error) masks its row.

    Time is the longest row rounded up to a multiple of `bucket`, so that few shapes are compiled.
    """
    longest = max(len(p) + len(a) for p, a in zip(prompts, actions, strict=True))
    time, size = -(-longest // bucket) * bucket, len(prompts)
    tokens = np.full((size, time), pad_id, np.int32)
    acted = np.full((size, action_tokens), pad_id, np.int32)
    mask = np.zeros((size, action_tokens), bool)
    behaviour = np.zeros((size, action_tokens), np.float32)
    for row, (prompt, action, lps) in enumerate(zip(prompts, actions, log_probs, strict=True)):
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : len(prompt) + len(action)] = action
        acted[row, : len(action)] = action
        behaviour[row, : len(action)] = lps
        mask[row, : len(action)] = rewards[row] is not None
    return Batch(
        tokens=tokens,
        prompt_lengths=np.asarray([len(p) for p in prompts], np.int32),
        actions=acted,
        mask=mask,
        behaviour_log_probs=behaviour,
        rewards=np.asarray([0.0 if r is None else r for r in rewards], np.float32),
        groups=np.asarray(groups, np.int32),
        weights=np.ones(size, np.float32) if weights is None else np.asarray(weights, np.float32),
        baselines=np.zeros(size, np.float32) if baselines is None else np.asarray(baselines, np.float32),
    )


MIN_DURATION_WEIGHT = 0.1
"""An action that never ran, as one that does not parse, took no time; without this it could not be unlearned."""


def duration_weights(seconds: Sequence[float | None]) -> list[float]:
    """Weights of a batch's actions in the policy's gradient, by how long each was executed (arXiv 2509.01684).

        w_i = max(seconds_i / mean(seconds), 0.1)

    Asynchronous workers hand in an action that takes `seconds` in proportion to 1 / seconds: fast ones, failures above
    all, are seen more often than they are sampled, and the weight takes that back. None (masked) gets 0 and is in no
    mean.
    """
    known = [value for value in seconds if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    if mean <= 0:
        return [0.0 if value is None else 1.0 for value in seconds]
    return [0.0 if value is None else max(value / mean, MIN_DURATION_WEIGHT) for value in seconds]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """What a policy and its critic say of a batch's action tokens, all float32 [batch, action]."""

    log_probs: jax.Array
    entropy: jax.Array
    values: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """What an update works towards, fixed for all of a batch's epochs; float32 [batch, action]."""

    log_probs: jax.Array  # of the proximal policy: the parameters before the first step
    values: jax.Array
    reference_log_probs: jax.Array
    advantages: jax.Array
    returns: jax.Array | None  # None: the estimator has no critic, and none is trained


def init_critic(hidden_size: int, backbone: Params | None = None) -> Params:
    """A value head, zero: the first advantages are the rewards themselves.

    Args:
      hidden_size: of the backbone.
      backbone: parameters of a separate critic, copied; None: the head sits on the policy's.
    """
    head = {"kernel": jnp.zeros((hidden_size,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}
    return head if backbone is None else head | {"backbone": jax.tree.map(jnp.copy, backbone)}


@dataclasses.dataclass(frozen=True)
class Model:
    """What is static of scoring; hashable, a static argument."""

    graph: Any
    temperature: float
    compute_dtype: str
    remat: str
    critic_graph: Any = None
    """Of a separate critic's backbone, where it is not the policy's."""


def _action_states(model: Model, graph: Any, params: Params, batch: Batch) -> jax.Array:
    """The hidden states that a batch's action tokens are chosen from, [batch, action, hidden]."""
    hidden = models.hidden_states(
        graph,
        params,
        batch.tokens,
        lengths=batch.prompt_lengths + jnp.sum(batch.mask, axis=1),
        remat=model.remat,
        compute_dtype=jnp.dtype(model.compute_dtype),
    )
    # The state before action token a is at prompt_length - 1 + a: only those positions meet the vocabulary.
    where = batch.prompt_lengths[:, None] - 1 + jnp.arange(batch.actions.shape[1])[None, :]
    where = jnp.minimum(where, batch.tokens.shape[1] - 1)
    return jnp.take_along_axis(hidden, where[:, :, None], axis=1)


def _score(model: Model, policy: Params, critic: Params | None, batch: Batch) -> Scores:
    hidden = _action_states(model, model.graph, policy, batch)
    log_probs, entropy = models.token_log_probs(
        model.graph, policy, hidden, batch.actions, temperature=model.temperature
    )
    if critic is None:
        return Scores(log_probs, entropy, jnp.zeros_like(log_probs))
    if "backbone" in critic:
        hidden = _action_states(model, model.critic_graph or model.graph, critic["backbone"], batch)
    return Scores(log_probs, entropy, hidden.astype(jnp.float32) @ critic["kernel"] + critic["bias"])


@functools.partial(jax.jit, static_argnames=("model", "micro_rows"))
def score(model: Model, policy: Params, critic: Params | None, batch: Batch, micro_rows: int = 0) -> Scores:
    """Scores of a batch, `micro_rows` rows at a time (0: all at once): proximal and reference log-probs, old values."""
    return mapped(functools.partial(_score, model, policy, critic), batch, micro_rows)


@functools.partial(jax.jit, static_argnames=("config",))
def make_targets(
    batch: Batch, proximal: Scores, reference: Scores, config: RLConfig, kl_coefficient: float | jax.Array = 0.0
) -> Targets:
    """Computes advantages by the config's estimator and normalisation over the global batch, and the critic's returns.

    With `kl_in` = reward, each token's reward is less `kl_coefficient` times its KL to the reference. With `best_of` k
    above 1 and `best_of_weight` w, (1 - w) E[r] + w E[max of k] is maximised: the gradient of the second is k times
    that of what an action adds.
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
    kl_coefficient: jax.Array,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: RLConfig,
    base: Params | None = None,
    critic_only: bool = False,
) -> tuple[Params, optax.OptState, dict[str, Mean]]:
    """Takes one step on a mini-batch; `params` is {"policy", "critic"}, donated with the optimizer's state.

    `kl_coefficient` is that of the KL in the loss: 0 where the KL is in the reward.

    Where there is a `base`, which is not trained, the policy is its adapters, and `model` has their graph. With
    `critic_only` the policy and its moments stay as they are.

        L = L_policy + value_coefficient * L_value + kl_coefficient * KL(policy || reference) - entropy_coefficient * H

    Returns metrics as (total, count) pairs, each over the tokens or rows that it is a mean of.
    """

    def loss(params: Params, rows: tuple[Batch, Targets]) -> tuple[jax.Array, dict[str, Mean]]:
        batch, targets = rows
        whole = params["policy"] if base is None else lora.join(base, params["policy"])
        scores = _score(model, whole, params["critic"], batch)
        weights, weight_metrics = correction_weights(
            config.corrections, targets.log_probs, batch.behaviour_log_probs, batch.mask
        )
        policy, metrics = policy_loss(
            POLICY_LOSSES.choose(config.loss),
            scores.log_probs,
            targets.log_probs,
            targets.advantages * batch.weights[:, None],
            batch.mask,
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
                batch.mask,
                clip=config.value_clip or None,
                aggregation=config.aggregation,
            )
        divergences = token_kl(
            scores.log_probs, targets.reference_log_probs, batch.mask, config.kl_estimator, batch.behaviour_log_probs
        )
        divergence = aggregate(divergences, batch.mask, config.aggregation)
        entropy = aggregate(scores.entropy, batch.mask, config.aggregation)
        total = (
            policy.total
            + config.value_coefficient * value.total
            + kl_coefficient * divergence.total
            - config.entropy_coefficient * entropy.total
        )
        if config.aggregation == "constant":  # told a token
            divergence, entropy = aggregate(divergences, batch.mask), aggregate(scores.entropy, batch.mask)
        terms = {"policy_loss": policy, "value_loss": value, "kl": divergence, "entropy": entropy}
        return total, jax.lax.stop_gradient({**metrics, **weight_metrics, **value_metrics, **terms})

    grads, metrics = summed_gradients(loss, params, (batch, targets), config.micro_batch)
    # Every term counts the same tokens (or sequences), so the total of means is the mean of totals.
    count = jnp.maximum(metrics["policy_loss"].count, 1.0)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    metrics["grad_norm"] = Mean(optax.tree.norm(grads["policy"]), jnp.ones(()))
    with jax.named_scope("optimizer"):
        new_params, new_state = apply(optimizer, grads, opt_state, params)
    if critic_only:
        new_params = new_params | {"policy": params["policy"]}
        inner = new_state.inner_states | {"policy": opt_state.inner_states["policy"]}
        new_state = new_state._replace(inner_states=inner)
    return new_params, new_state, metrics


def micro_rows(config: RLConfig, rows: int, time: int, shards: int = 1) -> int:
    """Rows a pass of the devices for a step on `rows` rows of `time` tokens; 0: all at once.

    With `micro_tokens`, the most within that budget that divide `rows` and are divided by `shards`, the shares that the
    mesh cuts a batch into; the fewest where none is within it. Else `micro_batch`.
    """
    if not config.micro_tokens:
        return config.micro_batch
    possible = [n for n in range(shards, rows + 1, shards) if rows % n == 0]
    return max((n for n in possible if n * time <= config.micro_tokens), default=min(possible, default=0))


def rl_optimizer(config: RLConfig, keeps: OptimizerConfig | None = None) -> optax.GradientTransformation:
    """AdamW for the policy and a separate critic, each behind a clip of its gradient norm; Adam for a value head."""
    keeps = keeps or OptimizerConfig()
    critic = optax.adam(config.critic_learning_rate)
    if config.critic == "separate":
        critic = clipped(adam(config.critic_learning_rate, keeps), config.max_grad_norm, keeps)
    return optax.multi_transform(
        {"policy": clipped(adam(config.learning_rate, keeps), config.max_grad_norm, keeps), "critic": critic},
        {"policy": "policy", "critic": "critic"},
    )
