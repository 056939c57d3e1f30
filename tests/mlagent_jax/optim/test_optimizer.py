"""What the optimizer keeps, where it keeps it, and how updates are rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mlagent_jax.optim.config import OptimizerConfig
from mlagent_jax.optim.optimizer import (
    abstract_state,
    init_state,
    make_optimizer,
    stochastic_rounding,
    with_learning_rate,
)
from mlagent_jax.rl import ppo
from mlagent_jax.settings.stages import RLConfig

PARAMS = {"layers": {"mlp": {"up": {"kernel": jnp.ones((2, 128, 256))}}}, "final_norm": {"scale": jnp.ones((128,))}}


def bytes_kept(keeps, dtype=jnp.float32):
    params = optax.tree.cast(PARAMS, dtype)
    state = init_state(make_optimizer("adamw", keeps=keeps), params)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("moments", "a_parameter"), [("float32", 8), ("bfloat16", 6), ("factored", 0.1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bytes_that_are_kept_for_a_parameter(moments, a_parameter, dtype):
    assert bytes_kept(OptimizerConfig(moments=moments), dtype) == pytest.approx(a_parameter, abs=0.1)


def minimised(keeps, dtype=jnp.float32, steps=60, rate=0.02):
    """Distance from the target after some steps down a quadratic."""
    optimizer = ppo.rl_optimizer(RLConfig(learning_rate=rate), keeps)
    target = jnp.linspace(0.5, 1.5, 128 * 256).reshape(128, 256)
    params = {"policy": {"kernel": jnp.zeros((128, 256), dtype)}, "critic": jnp.zeros(())}
    state = init_state(optimizer, params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum((p["policy"]["kernel"].astype(jnp.float32) - target) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return float(jnp.abs(params["policy"]["kernel"].astype(jnp.float32) - target).mean())


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "factored"])
def test_each_kind_of_moments_finds_the_minimum(moments):
    assert minimised(OptimizerConfig(moments=moments)) < 0.1


def test_the_default_is_plain_adamw():
    ours, theirs = make_optimizer("adamw"), optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.0, 0.9, 0.95))
    grads = jax.tree.map(lambda leaf: leaf * 0.01, PARAMS)
    mine = ours.update(grads, ours.init(PARAMS), PARAMS)[1].inner_state
    reference = theirs.update(grads, theirs.init(PARAMS), PARAMS)[1]
    assert jax.tree.structure(mine[1][0]) == jax.tree.structure(reference[1][0])
    jax.tree.map(np.testing.assert_array_equal, mine[1][0], reference[1][0])


def test_small_steps_of_bfloat16_add_up_only_with_stochastic_rounding():
    """From 1, steps of 0.0002 are a twentieth of bfloat16's distance to the next number."""
    params = {"w": jnp.ones((4096,), jnp.bfloat16)}
    rounding = stochastic_rounding()
    state = rounding.init(params)
    nearest = params

    @jax.jit
    def step(params, state, nearest):
        update = jax.tree.map(lambda p: jnp.full(p.shape, 2e-4, jnp.float32), params)
        rounded, state = rounding.update(update, state, params)
        return optax.apply_updates(params, rounded), state, optax.apply_updates(nearest, update)

    for _ in range(50):
        params, state, nearest = step(params, state, nearest)
    assert params["w"].dtype == jnp.bfloat16
    assert float(nearest["w"].astype(jnp.float32).mean()) == 1.0
    assert float(params["w"].astype(jnp.float32).mean()) == pytest.approx(1.01, abs=5e-4)


def test_stochastic_rounding_takes_a_neighbour_and_leaves_what_is_not_finite():
    values = jnp.asarray([1.0, -3.0, 1e-30, 256.0], jnp.bfloat16)
    update = jnp.asarray([1e-3, 1e-3, jnp.inf, 0.0], jnp.float32)
    rounding = stochastic_rounding(seed=3)
    rounded, _ = rounding.update({"w": update}, rounding.init({"w": values}), {"w": values})
    after = np.asarray(optax.apply_updates({"w": values}, rounded)["w"], np.float32)
    assert after[0] in (1.0, 1.0078125)
    assert after[1] in (-3.0, -2.984375)
    assert np.isinf(after[2])
    assert after[3] == 256.0


@pytest.mark.parametrize("kind", ["adamw", "muon", "rl"])
def test_moments_are_split_as_their_parameters_are(kind):
    mesh = AbstractMesh((1, 8, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    policy = {"layers": {"query": {"kernel": jax.ShapeDtypeStruct((2, 16, 4), jnp.float32, sharding=split)}}}
    if kind == "rl":
        critic = {"kernel": jax.ShapeDtypeStruct((16,), jnp.float32)}
        state = abstract_state(ppo.rl_optimizer(RLConfig()), {"policy": policy, "critic": critic})
    else:
        state = abstract_state(make_optimizer(kind), policy)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 16, 4)]
    assert len(moments) == (1 if kind == "muon" else 2)
    assert all(leaf.sharding == split for leaf in moments)
    others = [leaf for leaf in jax.tree.leaves(state) if leaf.shape != (2, 16, 4)]
    assert all(leaf.sharding.spec == PartitionSpec() for leaf in others)


@pytest.mark.parametrize(("kind", "first"), [("adamw", 1.0), ("muon", 1.0 + 0.9 / 1.9)])
def test_muons_adamw_has_nesterov_momentum_and_begins_with_longer_steps(kind, first):
    params = {"final_norm": {"scale": jnp.ones((128,))}}
    optimizer = make_optimizer(kind, max_grad_norm=1e9)
    state = with_learning_rate(optimizer.init(params), 0.01)
    steps = []
    for _ in range(60):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        steps.append(-float(updates["final_norm"]["scale"][0]))
    assert steps[0] == pytest.approx(0.01 * first, rel=1e-3)
    assert steps[-1] == pytest.approx(0.01, rel=0.01)
