"""One whole PPO update against the same arithmetic done by hand, on a small random policy in fp32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax import models
from mlagent_jax.config import RLConfig
from mlagent_jax.learning import ppo

SHAPE = models.ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=32,
    attention_bias=True,
    tie_word_embeddings=True,
)
PROMPTS, ACTIONS = [[3, 4, 5], [6, 7], [8], [9, 10]], [[11, 12], [13], [14, 15, 16], [17]]
REWARDS = [1.0, 0.0, None, 0.5]


@pytest.fixture(scope="module")
def policy():
    return models.create(SHAPE, jax.random.key(0))


@pytest.fixture
def batch():
    behaviour = [[-3.0] * len(action) for action in ACTIONS]
    return ppo.make_batch(PROMPTS, ACTIONS, behaviour, REWARDS, [0, 0, 1, 1], pad_id=0, action_tokens=4, bucket=8)


def model(graph, temperature=1.0):
    return ppo.Model(graph, temperature, "float32", "none")


def log_softmax_rows(graph, params, row, temperature):
    """Next-token log-probs of one unpadded row, by plain NumPy from the logits."""
    hidden = models.hidden_states(graph, params, jnp.asarray([row]))
    logits = np.asarray(models.logits(graph, params, hidden), np.float64)[0] / temperature
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_the_log_probs_of_the_action_tokens_at_the_temperature(policy, batch, temperature):
    graph, params = policy
    scores = ppo.score(model(graph, temperature), params, ppo.init_critic(16), batch)
    for row, (prompt, action) in enumerate(zip(PROMPTS, ACTIONS, strict=True)):
        if REWARDS[row] is None:
            continue
        rows = log_softmax_rows(graph, params, prompt + action, temperature)
        for t, token in enumerate(action):
            wanted = rows[len(prompt) - 1 + t, token]
            assert float(scores.log_probs[row, t]) == pytest.approx(wanted, abs=1e-4)


def test_a_masked_outcome_masks_its_whole_row(batch):
    assert batch.mask.tolist() == [[True, True, False, False], [True] + [False] * 3, [False] * 4, [True] + [False] * 3]


@pytest.mark.slow
def test_a_masked_row_does_not_move_the_parameters(policy, batch):
    """Whatever stands in the row of an infrastructure error, the update is the same."""
    graph, params = policy
    other = dataclasses.replace(
        batch,
        tokens=np.where(np.arange(4)[:, None] == 2, 1, batch.tokens),
        actions=np.where(np.arange(4)[:, None] == 2, 1, batch.actions),
        rewards=np.where(np.arange(4) == 2, 99.0, batch.rewards).astype(np.float32),
    )
    for left, right in zip(*(jax.tree.leaves(updated(graph, params, b)[0]) for b in (batch, other)), strict=True):
        np.testing.assert_array_equal(left, right)


DEFAULT = RLConfig(learning_rate=1e-2, value_coefficient=0.5)


def updated(graph, params, batch, config=DEFAULT):
    params = {"policy": jax.tree.map(jnp.copy, params), "critic": ppo.init_critic(16)}
    optimizer = ppo.rl_optimizer(config)
    proximal = ppo.score(model(graph), params["policy"], params["critic"], batch)
    targets = ppo.make_targets(batch, proximal, proximal, config)
    return ppo.ppo_step(
        params,
        optimizer.init(params),
        batch,
        targets,
        jnp.float32(0.1),
        model=model(graph),
        optimizer=optimizer,
        config=config,
    )[::2]


def test_the_first_step_of_a_batch_has_ratio_one_and_no_kl(policy, batch):
    metrics = updated(*policy, batch)[1]
    assert float(metrics["ratio"].value) == pytest.approx(1.0, abs=1e-6)
    assert float(metrics["log_ratio_abs"].value) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["kl"].value) == pytest.approx(0.0, abs=1e-6)


def test_advantages_with_a_zero_critic_are_the_whitened_rewards(policy, batch):
    graph, params = policy
    proximal = ppo.score(model(graph), params, ppo.init_critic(16), batch)
    targets = ppo.make_targets(batch, proximal, proximal, RLConfig())
    tokens = np.asarray([1.0, 1.0, 0.0, 0.5])  # gamma = lambda = 1: every token of an action gets its reward
    wanted = (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-8)
    np.testing.assert_allclose(np.asarray(targets.advantages)[batch.mask], wanted, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_best_of_two_is_weighed_against_the_mean(policy, batch, weight):
    graph, params = policy
    batch = dataclasses.replace(batch, groups=np.zeros_like(batch.groups))  # all from one state
    proximal = ppo.score(model(graph), params, ppo.init_critic(16), batch)
    config = RLConfig(best_of=2, best_of_weight=weight, estimator="rloo")
    counted = [float(r) for r, row in zip(batch.rewards, batch.mask, strict=True) if row.any()]
    worth = []
    for i, reward in enumerate(counted):  # the gradient of E[max of 2] is 2 times what an action adds to a pair
        others = counted[:i] + counted[i + 1 :]
        added = np.mean([max(reward, other) - other for other in others])
        worth.append((1 - weight) * reward + weight * 2 * added)
    baseline = [np.mean(worth[:i] + worth[i + 1 :]) for i in range(len(worth))]
    by_row = iter(np.asarray(worth) - baseline)
    tokens = np.concatenate([np.full(row.sum(), next(by_row)) for row in batch.mask if row.any()])
    wanted = (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-8)
    advantages = np.asarray(ppo.make_targets(batch, proximal, proximal, config).advantages)
    np.testing.assert_allclose(advantages[batch.mask], wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["gae", "grpo", "rloo", "reinforce_plus_plus"])
def test_an_update_makes_rewarded_actions_likelier(policy, batch, estimator):
    graph, params = policy
    config = RLConfig(learning_rate=1e-3, estimator=estimator, kl_coefficient=0.0)
    after, _ = updated(graph, params, batch, config)
    critic = ppo.init_critic(16)
    before = np.asarray(ppo.score(model(graph), params, critic, batch).log_probs)
    now = np.asarray(ppo.score(model(graph), after["policy"], critic, batch).log_probs)
    gain = np.where(batch.mask, now - before, 0.0).sum(axis=1)
    assert gain[0] > 0 > gain[1]


@pytest.mark.slow
def test_the_policy_loss_is_that_of_a_plain_loop(policy, batch):
    """mu != pi_old here (behaviour -3 everywhere): the truncated weight pi_old / mu counts."""
    graph, params = policy
    metrics = updated(graph, params, batch)[1]
    proximal = np.asarray(ppo.score(model(graph), params, ppo.init_critic(16), batch).log_probs, np.float64)
    rewards = {0: 1.0, 1: 0.0, 3: 0.5}
    tokens = [rewards[r] for r, t in zip(*np.nonzero(batch.mask), strict=True)]
    mean, std = np.mean(tokens), np.sqrt(np.var(tokens) + 1e-8)
    total = 0.0
    for r, t in zip(*np.nonzero(batch.mask), strict=True):
        weight = min(np.exp(proximal[r, t] + 3.0), RLConfig().max_importance_weight)
        total -= weight * (rewards[r] - mean) / std
    assert float(metrics["policy_loss"].value) == pytest.approx(total / len(tokens), abs=1e-4)


def test_duration_weights_are_seconds_over_their_mean_and_never_quite_zero():
    assert ppo.duration_weights([2.0, 6.0, None, 0.0, 8.0]) == pytest.approx([0.5, 1.5, 0.0, 0.1, 2.0])
    assert ppo.duration_weights([0.0, None]) == [1.0, 0.0]


def test_a_token_budget_becomes_rows_that_divide_the_batch():
    config = RLConfig(micro_tokens=1000, micro_batch=3)
    assert ppo.micro_rows(config, 12, 100) == 6
    assert ppo.micro_rows(config, 12, 100, shards=4) == 4
    assert ppo.micro_rows(config, 12, 5000) == 1
    assert ppo.micro_rows(RLConfig(micro_batch=3), 12, 5000) == 3


def test_kl_in_the_reward_is_taken_off_each_token(batch):
    log_probs = np.full(batch.mask.shape, -1.0, np.float32)
    proximal = ppo.Scores(log_probs, log_probs, np.zeros_like(log_probs))
    reference = ppo.Scores(log_probs - 0.5, log_probs, np.zeros_like(log_probs))
    plain = ppo.make_targets(batch, proximal, reference, RLConfig(kl_in="loss", kl_estimator="k1"), 0.2)
    less = ppo.make_targets(batch, proximal, reference, RLConfig(kl_in="reward", kl_estimator="k1"), 0.2)
    later = np.cumsum(np.asarray(batch.mask)[:, ::-1], axis=1)[:, ::-1]  # tokens from here to the action's end
    np.testing.assert_allclose(less.returns, np.where(batch.mask, plain.returns - 0.1 * later, 0), atol=1e-6)


@pytest.mark.slow
def test_a_separate_critic_moves_its_own_backbone_and_leaves_the_policy_to_the_policy_loss(policy, batch):
    graph, params = policy
    config = RLConfig(critic="separate", critic_learning_rate=1e-2, learning_rate=1e-9, value_clip=0.0)
    critic = ppo.init_critic(16, params)
    critic["kernel"] = critic["kernel"] + 0.1  # a head of zero passes no gradient to its backbone
    both = {"policy": jax.tree.map(jnp.copy, params), "critic": critic}
    before = jax.tree.map(np.asarray, both)
    optimizer = ppo.rl_optimizer(config)
    scores = ppo.score(model(graph), params, critic, batch)
    assert np.abs(np.asarray(scores.values)).max() > 0
    targets = ppo.make_targets(batch, scores, scores, config)
    after, _, _ = ppo.ppo_step(
        both,
        optimizer.init(both),
        batch,
        targets,
        jnp.float32(0),
        model=model(graph),
        optimizer=optimizer,
        config=config,
    )

    def moved(part, other):
        return max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (part, other)), strict=True))

    assert moved(after["critic"]["backbone"], before["critic"]["backbone"]) > 1e-3
    assert moved(after["policy"], before["policy"]) < 1e-6
