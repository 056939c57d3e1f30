"""One whole PPO update against the same arithmetic done by hand, on a small random policy in fp32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import SHAPE

from mlagent_jax import models
from mlagent_jax.rl import ppo
from mlagent_jax.settings.stages import RLConfig

PROMPTS, ACTIONS = [[3, 4, 5], [6, 7], [8], [9, 10]], [[11, 12], [13], [14, 15, 16], [17]]
REWARDS = [1.0, 0.0, None, 0.5]


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
    scores = ppo.score(model(graph, temperature), params, ppo.init_critic(SHAPE.hidden_size), batch)
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
    params = {"policy": jax.tree.map(jnp.copy, params), "critic": ppo.init_critic(SHAPE.hidden_size)}
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
    proximal = ppo.score(model(graph), params, ppo.init_critic(SHAPE.hidden_size), batch)
    targets = ppo.make_targets(batch, proximal, proximal, RLConfig())
    tokens = np.asarray([1.0, 1.0, 0.0, 0.5])  # gamma = lambda = 1: every token of an action gets its reward
    wanted = (tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-8)
    np.testing.assert_allclose(np.asarray(targets.advantages)[batch.mask], wanted, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_best_of_two_is_weighed_against_the_mean(policy, batch, weight):
    graph, params = policy
    batch = dataclasses.replace(batch, groups=np.zeros_like(batch.groups))  # all from one state
    proximal = ppo.score(model(graph), params, ppo.init_critic(SHAPE.hidden_size), batch)
    config = RLConfig(best_of=2, best_of_weight=weight, estimator="rloo")
    counted = [float(r) for r, row in zip(batch.rewards, batch.mask, strict=True) if row.any()]
    by_row = []
    for i, reward in enumerate(counted):  # the gradient of E[max of 2] is 2 times what an action adds to a pair
        others = counted[:i] + counted[i + 1 :]
        added = np.mean([max(reward, other) - other for other in others])
        by_row.append((1 - weight) * (reward - np.mean(others)) + weight * 2 * added)
    wanted = np.concatenate(
        [np.full(row.sum(), worth) for row, worth in zip([r for r in batch.mask if r.any()], by_row, strict=True)]
    )
    advantages = np.asarray(ppo.make_targets(batch, proximal, proximal, config).advantages)
    np.testing.assert_allclose(advantages[batch.mask], wanted, atol=1e-5)


def test_kl_in_the_reward_is_weighed_against_the_best_of_two(batch):
    """The penalty is the mean reward's: what an action adds to the best of two knows nothing of it."""
    log_probs = np.full(batch.mask.shape, -1.0, np.float32)
    proximal = ppo.Scores(log_probs, log_probs, np.zeros_like(log_probs))
    reference = ppo.Scores(log_probs - 0.5, log_probs, np.zeros_like(log_probs))
    settings = {"best_of": 2, "best_of_weight": 0.5, "estimator": "rloo", "kl_estimator": "k1"}
    plain = ppo.make_targets(batch, proximal, reference, RLConfig(kl_in="loss", **settings), 0.2).advantages
    less = ppo.make_targets(batch, proximal, reference, RLConfig(kl_in="reward", **settings), 0.2).advantages
    # Two tokens against one: 0.1 of a penalty more than its neighbour in the first group, alone in the second.
    np.testing.assert_allclose(np.asarray(less - plain)[:, 0], [-0.1, 0.1, 0.0, 0.0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "gae"},
        {"estimator": "grpo", "loss": "gspo", "aggregation": "sequence"},
        {"estimator": "rloo", "loss": "cispo"},
        {"estimator": "opo", "loss": "dppo", "aggregation": "constant"},
        {"estimator": "reinforce_plus_plus", "loss": "sapo", "corrections": "mask_tokens:low=0.01,high=100"},
        {"estimator": "single_stream"},
    ],
    ids=lambda settings: settings["estimator"],
)
def test_an_update_makes_rewarded_actions_likelier(policy, batch, settings):
    graph, params = policy
    batch = dataclasses.replace(batch, baselines=np.full(4, 0.5, np.float32))
    config = RLConfig(learning_rate=1e-3, kl_coefficient=0.0, **settings)
    after, _ = updated(graph, params, batch, config)
    critic = ppo.init_critic(SHAPE.hidden_size)
    before = np.asarray(ppo.score(model(graph), params, critic, batch).log_probs)
    now = np.asarray(ppo.score(model(graph), after["policy"], critic, batch).log_probs)
    gain = np.where(batch.mask, now - before, 0.0).sum(axis=1)
    assert gain[0] > 0 > gain[1]


@pytest.mark.slow
def test_the_policy_loss_is_that_of_a_plain_loop(policy, batch):
    """mu != pi_old here (behaviour -3 everywhere): the truncated weight pi_old / mu counts."""
    graph, params = policy
    metrics = updated(graph, params, batch)[1]
    scores = ppo.score(model(graph), params, ppo.init_critic(SHAPE.hidden_size), batch)
    proximal = np.asarray(scores.log_probs, np.float64)
    rewards = {0: 1.0, 1: 0.0, 3: 0.5}
    tokens = [rewards[r] for r, t in zip(*np.nonzero(batch.mask), strict=True)]
    mean, std = np.mean(tokens), np.sqrt(np.var(tokens) + 1e-8)
    total = 0.0
    for r, t in zip(*np.nonzero(batch.mask), strict=True):
        weight = min(np.exp(proximal[r, t] + 3.0), 5.0)
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


GAMMA, LAMBDA, CLIP, MAX_WEIGHT = 0.9, 0.8, 0.05, 1.5


def by_hand(reference, critic, config, coefficient, temperature, steps):
    """`steps` updates in float64 of a policy that is an embedding E and the scale g of a norm: the hidden state after a
    token is g * E[token] / rms(E[token]), its logits are E times that. Gradients are finite differences."""
    places = [(r, t) for r, action in enumerate(ACTIONS) if REWARDS[r] is not None for t in range(len(action))]

    def state(theta, r, t):
        x = theta["E"][(PROMPTS[r] + ACTIONS[r])[len(PROMPTS[r]) - 1 + t]]
        return theta["g"] * x / np.sqrt(np.mean(x * x) + SHAPE.rms_norm_eps)

    def scored(theta):
        log_probs, entropy, values = {}, {}, {}
        for r, t in places:
            logits = theta["E"] @ state(theta, r, t) / temperature
            logs = logits - np.log(np.sum(np.exp(logits)))
            log_probs[r, t], entropy[r, t] = logs[ACTIONS[r][t]], -np.sum(np.exp(logs) * logs)
            values[r, t] = state(theta, r, t) @ theta["k"] + theta["b"]
        return log_probs, entropy, values

    theta = {**critic, "E": reference["E"] * 1.1, "g": reference["g"]}
    old, _, old_values = scored(theta)
    anchor = scored({**theta, **reference})[0]
    advantages, ahead = {}, {}
    for r, t in reversed(places):  # of each action from its last token, which is terminal
        last = t == len(ACTIONS[r]) - 1
        following = 0.0 if last else old_values[r, t + 1]
        delta = (REWARDS[r] if last else 0.0) + GAMMA * following - old_values[r, t]
        ahead[r] = delta + (0.0 if last else GAMMA * LAMBDA * ahead[r])
        advantages[r, t] = ahead[r]
    returns = {place: advantages[place] + old_values[place] for place in places}
    spread = np.sqrt(np.var(list(advantages.values())) + 1e-8)
    whitened = {place: (advantages[place] - np.mean(list(advantages.values()))) / spread for place in places}

    def loss(theta):
        log_probs, entropy, values = scored(theta)
        total = 0.0
        for place in places:
            ratio, advantage = np.exp(log_probs[place] - old[place]), whitened[place]
            weight = min(np.exp(old[place] + 3.0), MAX_WEIGHT)
            total -= weight * min(ratio * advantage, np.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
            near = old_values[place] + np.clip(values[place] - old_values[place], -config.value_clip, config.value_clip)
            error = max((values[place] - returns[place]) ** 2, (near - returns[place]) ** 2)
            total += config.value_coefficient * 0.5 * error
            away = log_probs[place] - anchor[place]
            total += coefficient * (np.exp(-away) - 1 + away) - config.entropy_coefficient * entropy[place]
        return total / len(places)

    first, second = ({name: np.zeros_like(value) for name, value in theta.items()} for _ in range(2))
    norms = []
    for step in range(1, steps + 1):
        grads = {name: np.zeros_like(value) for name, value in theta.items()}
        for name, value in theta.items():
            for index in np.ndindex(value.shape):
                ends = []
                for sign in (1e-6, -1e-6):
                    moved = {**theta, name: value.copy()}
                    moved[name][index] += sign
                    ends.append(loss(moved))
                grads[name][index] = (ends[0] - ends[1]) / 2e-6
        norms.append(np.sqrt(np.sum(grads["E"] ** 2) + np.sum(grads["g"] ** 2)))
        for name in theta:
            of_policy = name in ("E", "g")
            grad = grads[name] * (min(1.0, config.max_grad_norm / norms[-1]) if of_policy else 1.0)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            rate = config.learning_rate if of_policy else config.critic_learning_rate
            theta = {**theta, name: np.asarray(theta[name] - rate * mean / (np.sqrt(square) + 1e-8))}
    return theta, norms


@pytest.mark.slow
def test_two_whole_steps_are_those_worked_out_by_hand(batch):
    """Everything at once, to the parameters: clips of the ratio, the value and the gradient are met on the way."""
    shape = dataclasses.replace(SHAPE, vocab_size=18, hidden_size=4, num_layers=1, head_dim=2, intermediate_size=4)
    graph, params = models.create(shape, jax.random.key(1))
    params["layers"] = jax.tree.map(jnp.zeros_like, params["layers"])  # hidden states pass, and no gradient comes
    rng = np.random.default_rng(0)
    reference = {"E": rng.normal(size=(18, 4)), "g": rng.uniform(0.5, 1.5, 4)}
    critic = {"k": rng.normal(size=4) * 0.1, "b": np.asarray(0.2)}
    config = RLConfig(
        learning_rate=0.05,
        critic_learning_rate=0.1,
        estimator="gae:gamma=0.9,lam=0.8,critic_lam=0.8",
        loss="ppo_clip:low=0.05",
        value_clip=0.05,
        value_coefficient=0.7,
        entropy_coefficient=0.02,
        corrections="truncate_tokens:limit=1.5",
        max_grad_norm=0.3,
    )
    wanted, norms = by_hand(reference, critic, config, 0.2, 0.8, steps=2)

    def whole(scale):
        embedding = {"embedding": jnp.asarray(reference["E"] * scale, jnp.float32)}
        return {**params, "embedder": embedding, "final_norm": {"scale": jnp.asarray(reference["g"], jnp.float32)}}

    scorer, optimizer = model(graph, 0.8), ppo.rl_optimizer(config)
    head = {"kernel": jnp.asarray(critic["k"], jnp.float32), "bias": jnp.asarray(critic["b"], jnp.float32)}
    targets = ppo.make_targets(
        batch, ppo.score(scorer, whole(1.1), head, batch), ppo.score(scorer, whole(1.0), None, batch), config
    )
    trained = {"policy": whole(1.1), "critic": head}
    state, found = optimizer.init(trained), []
    for _ in range(2):
        trained, state, metrics = ppo.ppo_step(
            trained, state, batch, targets, jnp.float32(0.2), model=scorer, optimizer=optimizer, config=config
        )
        found.append(metrics)
    assert [float(metrics["grad_norm"].value) for metrics in found] == pytest.approx(norms, rel=1e-3)
    assert norms[0] > config.max_grad_norm
    assert float(found[1]["clip_fraction"].value) > 0 and float(found[1]["value_clip_fraction"].value) > 0
    for ours, theirs in (
        (trained["policy"]["embedder"]["embedding"], wanted["E"]),
        (trained["policy"]["final_norm"]["scale"], wanted["g"]),
        (trained["critic"]["kernel"], wanted["k"]),
        (trained["critic"]["bias"], wanted["b"]),
    ):
        np.testing.assert_allclose(ours, theirs, atol=5e-4)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(trained["policy"]["layers"]))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["head", "separate"])
def test_a_critic_that_warms_up_leaves_the_policy_and_its_moments_as_they_are(policy, batch, placement):
    graph, params = policy
    config = RLConfig(learning_rate=1e-2, critic=placement, critic_learning_rate=1e-2)
    critic = ppo.init_critic(16, params if placement == "separate" else None)
    critic["kernel"] = critic["kernel"] + 0.1
    both = {"policy": jax.tree.map(jnp.copy, params), "critic": critic}
    optimizer = ppo.rl_optimizer(config)
    state = optimizer.init(both)
    before = jax.tree.map(np.asarray, (both, state.inner_states["policy"]))
    scores = ppo.score(model(graph), params, critic, batch)
    targets = ppo.make_targets(batch, scores, scores, config)
    options = {"model": model(graph), "optimizer": optimizer, "config": config, "critic_only": True}
    after, state, metrics = ppo.ppo_step(both, state, batch, targets, jnp.float32(0.1), **options)
    jax.tree.map(np.testing.assert_array_equal, after["policy"], before[0]["policy"])
    jax.tree.map(np.testing.assert_array_equal, state.inner_states["policy"], before[1])
    assert np.abs(np.asarray(after["critic"]["kernel"]) - before[0]["critic"]["kernel"]).max() > 1e-3
    assert float(metrics["grad_norm"].value) > 0, "the policy would have moved"


@pytest.mark.slow
def test_without_a_critic_no_value_loss_reaches_the_policy(policy, batch):
    """GRPO has no critic: the policy's gradient is the same however its value head errs."""
    graph, params = policy
    config = RLConfig(learning_rate=1e-2, estimator="grpo", kl_coefficient=0.0)
    found = []
    for scale in (0.0, 5.0):
        critic = ppo.init_critic(16)
        critic["kernel"] = critic["kernel"] + scale
        both = {"policy": jax.tree.map(jnp.copy, params), "critic": critic}
        optimizer = ppo.rl_optimizer(config)
        scores = ppo.score(model(graph), params, critic, batch)
        targets = ppo.make_targets(batch, scores, scores, config)
        assert targets.returns is None
        after, _, metrics = ppo.ppo_step(
            both,
            optimizer.init(both),
            batch,
            targets,
            jnp.float32(0),
            model=model(graph),
            optimizer=optimizer,
            config=config,
        )
        found.append(after["policy"])
        assert float(metrics["value_loss"].value) == 0
    jax.tree.map(np.testing.assert_array_equal, *found)
