"""Batches that pretrain the critic: the expert's steps with their rewards.

A value head starts at 0. Without pretraining, the policy would follow advantages from an untrained head. The expert's
steps are on disk with their outcomes, so that the returns cost no execution (VAPO, Yue et al. 2025, arXiv 2504.05118).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from environments.rewards import compute
from mlagent_jax.agents.prompts import Renderer
from mlagent_jax.models.packing import Sample
from mlagent_jax.rl import ppo
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime.errors import ConfigError


def expert_batches(run: Run, renderer: Renderer) -> Iterator[tuple[ppo.Batch, list[Sample]]]:
    """Yield batches of the expert's steps in training tasks, `critic_pretraining` epochs of them.

    A batch has the rows of one mini-batch. Steps that exceed the token limits or whose outcome is masked are excluded.
    Each epoch is shuffled, and its incomplete last batch is dropped.

    Raises:
      ConfigError: The steps do not fill one batch.
    """
    config = run.config
    rows = config.rl.states * config.rl.samples // config.rl.minibatches
    steps = []
    for record in run.expert_records():
        state, reward = dataclasses.replace(record.state, ideas=()), compute(config.rl.reward, record.outcome)
        action = renderer.encode_action(record.action)
        fits = len(action) <= config.prompt.max_action_tokens and renderer.fits(state)
        if record.split == "train" and reward is not None and fits:
            steps.append((renderer.encode(state), action, reward))
    if len(steps) < rows:
        raise ConfigError(
            f"config.rl.critic_pretraining is {config.rl.critic_pretraining}, and the expert's {len(steps)} steps fill "
            f"no batch of {rows}: set it to 0, or collect more"
        )
    for epoch in range(config.rl.critic_pretraining):
        order = np.random.default_rng([config.seed, epoch, 3]).permutation(len(steps))
        for first in range(0, len(steps) - rows + 1, rows):
            prompts, actions, rewards = zip(*(steps[i] for i in order[first : first + rows]), strict=True)
            unknown = [[0.0] * len(action) for action in actions]
            batch = ppo.make_batch(
                actions, unknown, rewards, range(rows), action_tokens=config.prompt.max_action_tokens
            )
            yield batch, list(map(Sample, prompts, actions))
