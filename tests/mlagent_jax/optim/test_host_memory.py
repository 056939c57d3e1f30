"""Moments in the memory of the host: the same results, the same layout, kept there by every step and checkpoint."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlagent_jax.optim.config import OptimizerConfig
from mlagent_jax.optim.optimizer import apply, init_state, make_optimizer, with_learning_rate
from mlagent_jax.parallelism import make_mesh

KERNEL = jnp.linspace(-1.0, 1.0, 2 * 128 * 256).reshape(2, 128, 256)
PARAMS = {"layers": {"up": {"kernel": KERNEL}}, "scale": jnp.ones(9)}


@pytest.fixture(scope="module")
def params():
    """On a mesh of one device, as a run's are."""
    return jax.device_put(PARAMS, NamedSharding(make_mesh({}, jax.devices()[:1]), PartitionSpec()))


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.ndim}


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "factored"])
def test_an_update_from_the_host_is_that_of_the_device(moments, params):
    optimizer = make_optimizer("adamw", keeps=OptimizerConfig(moments=moments))
    step = jax.jit(lambda params, state: apply(optimizer, jax.tree.map(jnp.sin, params), state, params))
    found = {}
    for placement in ("device", "host"):
        now, state = params, init_state(optimizer, params, placement)
        for _ in range(3):
            now, state = step(now, with_learning_rate(state, 0.1))
        found[placement] = (now, state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found["host"], found["device"])
    assert kinds(found["device"]) == {"device"}
    assert kinds(found["host"][0]) == {"device"}
    # Adafactor's rows and columns are too small to be worth the way: what has its parameter's shape is moved.
    expected = {"factored": {"device", "pinned_host"}}.get(moments, {"pinned_host"})
    assert kinds(found["host"][1]) == expected
    assert optax.tree.norm(found["host"][0]) != optax.tree.norm(PARAMS)


def test_without_a_mesh_there_is_no_other_memory():
    with pytest.raises(ValueError, match="need parameters on a mesh"):
        init_state(make_optimizer("adamw"), PARAMS, "host")


PROGRAM = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from mlagent_jax import models
from mlagent_jax.settings.stages import RLConfig
from mlagent_jax.rl import ppo
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.optim.optimizer import init_state, make_optimizer, with_learning_rate
from mlagent_jax.sft.step import sft_step
from mlagent_jax.parallelism import DEFAULT_RULES, make_mesh
from mlagent_jax.runs.policies import abstract

mesh = make_mesh({"fsdp": 2, "tensor": 2})
jax.set_mesh(mesh)
# No bias: on keys its true gradient is 0, and Adam makes steps of what rounding leaves.
config = models.ModelConfig(96, 16, 2, 4, 2, 8, 32, model_type="llama", initializer_range=0.2)
graph, start = models.create(config, jax.random.key(0), mesh=mesh)
rng = np.random.default_rng(0)


def placed(array):
    spec = DEFAULT_RULES.spec(("batch",), mesh)
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))


def layout(state):
    return [(leaf.shape, leaf.sharding.spec, leaf.sharding.memory_kind) for leaf in jax.tree.leaves(state) if leaf.ndim]


def trained(begin, step, folder):
    params, state = begin()
    with Checkpointer(folder) as saved:
        for index in range(4):
            if index == 2:  # a resume in the middle
                saved.save(1, {"params": params, "state": state}, {})
                saved.wait()
                before = layout(state)
                arrays, _ = saved.restore(1, {"params": abstract(params), "state": abstract(state)})
                params, state = arrays["params"], arrays["state"]
                assert layout(state) == before
            params, state = step(params, state)
    return params, state


def sft(placement):
    optimizer = make_optimizer("adamw")
    tokens = rng.integers(0, 96, (4, 17)).astype(np.int32)
    rows = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((4, 16), np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (4, 1)),
        "mask": np.ones((4, 16), bool),
    }

    def begin():
        params = jax.tree.map(jnp.copy, start)
        return params, with_learning_rate(init_state(optimizer, params, placement), 1e-2)

    def step(params, state):
        static = {"graph": graph, "optimizer": optimizer, "remat": "full", "compute_dtype": "float32", "micro_rows": 2}
        return sft_step(params, state, jax.tree.map(placed, rows), **static)[:2]

    return begin, step


def rl(placement):
    settings = RLConfig(learning_rate=1e-2, critic="separate", critic_learning_rate=1e-2)
    optimizer = ppo.rl_optimizer(settings)
    model = ppo.Model(graph, 1.0, "float32", "none", graph)
    prompts, actions = rng.integers(1, 96, (4, 5)).tolist(), rng.integers(1, 96, (4, 3)).tolist()
    batch = ppo.make_batch(
        prompts, actions, [[-3.0] * 3] * 4, [1.0, 0.0, None, 0.5], [0, 0, 1, 1], pad_id=0, action_tokens=4, bucket=8
    )

    def begin():
        everywhere = jax.sharding.NamedSharding(mesh, jax.P())
        critic = ppo.init_critic(16, start)
        critic |= {name: jax.device_put(critic[name], everywhere) for name in ("kernel", "bias")}
        params = {"policy": jax.tree.map(jnp.copy, start), "critic": critic}
        return params, init_state(optimizer, params, placement)

    def step(params, state):
        rows = jax.tree.map(placed, batch)
        scores = ppo.score(model, params["policy"], params["critic"], rows)
        targets = ppo.make_targets(rows, scores, scores, settings)
        static = {"model": model, "optimizer": optimizer, "config": settings}
        return ppo.ppo_step(params, state, rows, targets, jnp.float32(0.1), **static)[:2]

    return begin, step


for name, stage in (("sft", sft), ("rl", rl)):
    found = {}
    for placement in ("device", "host"):
        rng = np.random.default_rng(0)
        found[placement] = trained(*stage(placement), f"{sys.argv[1]}/{name}-{placement}")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found["host"], found["device"])
    on_device, on_host = (layout(found[placement][1]) for placement in ("device", "host"))
    assert {kind for *_, kind in on_host} == {"pinned_host"}, on_host
    assert [each[:2] for each in on_host] == [each[:2] for each in on_device]
    assert any("fsdp" in spec and "tensor" in spec for _, spec, _ in on_host)
print("equal")
"""


@pytest.mark.slow
def test_sft_and_ppo_on_a_mesh_go_on_from_a_checkpoint_with_moments_on_the_host(tmp_path):
    """In a process of its own, which simulates 4 devices."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("equal\n")
