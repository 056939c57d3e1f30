"""The plan counts what is allocated, and slots follow from what is free."""

import jax
import jax.numpy as jnp
import pytest

from mlagent_jax import models
from mlagent_jax.sampling import plan

SHAPE = models.ModelConfig(96, 32, 2, 4, 2, 8, 48)


def test_a_slot_s_cache_is_what_is_allocated():
    graph, _ = models.abstract(SHAPE)
    cache = jax.eval_shape(lambda: models.init_cache(graph, 5, 100, jnp.bfloat16))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    step = plan.slot_bytes(SHAPE, 0, "bfloat16")
    assert step >= 2 * 4 * SHAPE.vocab_size, "log-probs and noise at least"
    assert 5 * (plan.slot_bytes(SHAPE, 100, "bfloat16") - step) == held


def test_slots_follow_from_free_memory(monkeypatch):
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), models.abstract(SHAPE)[1])
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    each = plan.slot_bytes(SHAPE, 64, "float32")
    free = {10: weights + 10.5 * each, plan.MOST_SLOTS: weights + 1e4 * each}
    for slots, size in free.items():
        monkeypatch.setattr(plan, "free_bytes", lambda device, size=size: size / plan._SHARE)
        assert plan.plan_slots(SHAPE, params, 64, None, copied=weights) == slots
        assert plan.plan_slots(SHAPE, params, 64, None, copied=weights, shards=4) == 4 * slots, (
            "each device has as many"
        )
    monkeypatch.setattr(plan, "free_bytes", lambda device: weights)
    with pytest.raises(ValueError, match=r"no slot fits: .* 64 tokens"):
        plan.plan_slots(SHAPE, params, 64, None, copied=weights)
