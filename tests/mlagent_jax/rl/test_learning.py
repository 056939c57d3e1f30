"""The reward moves the policy, and nothing else does: PPO on a task small enough to know every action's true worth.

The control of the whole pipeline, in small: with rewards replaced by noise, the true reward does not rise.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import SHAPE as TINY

from mlagent_jax import models
from mlagent_jax.rl import ppo
from mlagent_jax.settings.stages import RLConfig

VOCAB, STATES, SAMPLES = 24, 8, 8
SHAPE = dataclasses.replace(TINY, vocab_size=VOCAB, num_layers=1)
PROMPTS = np.arange(1, STATES + 1)
WORTH = np.random.default_rng(0).permuted(np.tile(np.arange(VOCAB) % 4 == 0, (STATES, 1)), axis=1).astype(float)
"""[state, action]: a quarter of the one-token actions is right, which ones depends on the state."""


def expected(graph, params):
    """Probability of each one-token action in each state, [state, action]."""
    hidden = models.hidden_states(graph, params, jnp.asarray(PROMPTS)[:, None])
    return np.asarray(jax.nn.softmax(models.logits(graph, params, hidden)[:, 0]), np.float64)


def train(reward, iterations=40, **settings):
    """Gain of the true expected reward after PPO on `reward(rng, state, action)`."""
    graph, params = models.create(SHAPE, jax.random.key(0))
    config = RLConfig(
        learning_rate=1e-2, minibatches=1, epochs=2, kl_coefficient=0.01, samples=SAMPLES, states=STATES, **settings
    )
    model = ppo.Model(graph, 1.0, "float32", "none")
    reference = jax.tree.map(jnp.copy, params)
    both = {"policy": params, "critic": ppo.init_critic(SHAPE.hidden_size)}
    optimizer = ppo.rl_optimizer(config)
    state, rng = optimizer.init(both), np.random.default_rng(1)
    before = (expected(graph, reference) * WORTH).sum(1).mean()
    for _ in range(iterations):
        probs = expected(graph, both["policy"])
        rows = [(s, int(rng.choice(VOCAB, p=probs[s] / probs[s].sum()))) for s in range(STATES) for _ in range(SAMPLES)]
        batch = ppo.make_batch(
            [[int(PROMPTS[s])] for s, _ in rows],
            [[a] for _, a in rows],
            [[np.log(probs[s, a])] for s, a in rows],
            [reward(rng, s, a) for s, a in rows],
            [s for s, _ in rows],
            pad_id=0,
            action_tokens=1,
            bucket=2,
        )
        proximal = ppo.score(model, both["policy"], both["critic"], batch)
        targets = ppo.make_targets(batch, proximal, ppo.score(model, reference, None, batch), config)
        for _ in range(config.epochs):
            both, state, _ = ppo.ppo_step(
                both, state, batch, targets, jnp.float32(0.01), model=model, optimizer=optimizer, config=config
            )
    return (expected(graph, both["policy"]) * WORTH).sum(1).mean() - before


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"best_of": 2}, {"estimator": "rloo"}], ids=["gae", "best of 2", "rloo"])
def test_the_reward_moves_the_policy(settings):
    assert train(lambda rng, state, action: WORTH[state, action], **settings) > 0.4


@pytest.mark.slow
def test_noise_in_place_of_the_reward_teaches_nothing():
    assert abs(train(lambda rng, state, action: rng.random())) < 0.1
