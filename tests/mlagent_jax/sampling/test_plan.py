"""The plan counts what is allocated, and slots follow from what is free."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mlagent_jax import models
from mlagent_jax.sampling import SamplerConfig, engine, plan

SHAPE = models.ModelConfig(96, 32, 2, 4, 2, 8, 48)
SETTINGS = SamplerConfig(max_new_tokens=20, samples=4, slots=12)


def test_the_caches_of_slots_are_what_is_allocated():
    graph, params = models.abstract(SHAPE, dtype=jnp.bfloat16)
    state = jax.eval_shape(lambda params: engine.empty_slots(graph, SETTINGS, 100, params), params)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.cache, state.prompts)))
    step = plan.slots_bytes(SHAPE, SETTINGS, 100, "bfloat16") - held
    assert 12 * 2 * 4 * SHAPE.vocab_size <= step <= 12 * 4 * 4 * SHAPE.vocab_size, "log-probs and noise at least"


def test_slots_follow_from_free_memory(monkeypatch):
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), models.abstract(SHAPE)[1])
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    ten = plan.slots_bytes(SHAPE, dataclasses.replace(SETTINGS, slots=10), 64, "float32")
    for slots, size in {10: ten, 9: ten - 1, plan.MOST_SLOTS: 1e4 * ten}.items():
        monkeypatch.setattr(plan, "free_bytes", lambda device, size=size: -(-(weights + size) // plan._SHARE))
        assert plan.plan_slots(SHAPE, SETTINGS, params, 64, None, copied=weights) == slots
        found = plan.plan_slots(SHAPE, SETTINGS, params, 64, None, copied=weights, shards=4)
        assert found == 4 * slots, "each device has as many"
    monkeypatch.setattr(plan, "free_bytes", lambda device: weights)
    with pytest.raises(ValueError, match=r"no slot fits: .* 84 tokens"):
        plan.plan_slots(SHAPE, SETTINGS, params, 64, None, copied=weights)


def test_prompts_of_14000_tokens_leave_room_for_three_times_the_slots():
    """A 7B with 40 GB for its cache, n = 4: each slot with its own prompt, at the rooms of then, and a prompt once."""
    shape = models.ModelConfig(152_064, 3584, 28, 28, 4, 128, 18_944, attention_bias=True)
    alone = SamplerConfig(max_new_tokens=1024)
    shared = dataclasses.replace(alone, samples=4)
    before = plan.slots_that_fit(shape, alone, 16_384, "bfloat16", 40_000_000_000)
    after = plan.slots_that_fit(shape, shared, shared.room(14_000), "bfloat16", 40_000_000_000)
    assert before == 39 and after >= 3 * before
