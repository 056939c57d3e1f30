"""Loss, gradients and samples are the same on one device and on every factorisation of eight (simulated) ones."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from mlagent_jax import models
from mlagent_jax.parallelism import DEFAULT_RULES, make_mesh
from mlagent_jax.sampling import SamplerConfig, TokenSampler

assert jax.device_count() == 8
config = models.ModelConfig(96, 32, 2, 8, 8, 8, 64, attention_bias=True, initializer_range=0.2)
tokens = np.random.default_rng(0).integers(0, 96, (8, 21))
key = jax.random.key(0)


def outcome(mesh, rules=DEFAULT_RULES, config=config, sample=sys.argv[1] == "sample"):
    with jax.set_mesh(mesh):
        graph, params = models.create(config, key, mesh=mesh, rules=rules)

        @jax.jit
        @jax.value_and_grad
        def loss(params, tokens):
            hidden = models.hidden_states(graph, params, tokens[:, :-1])
            return models.token_log_probs(graph, params, hidden, tokens[:, 1:], chunk_size=7)[0].mean()

        value = jax.device_get(loss(params, tokens))
        sampled = []
        if sample:
            settings = SamplerConfig(max_new_tokens=6, slots=8, buckets=(8,), prefill_rows=8)
            sampler = TokenSampler(graph, settings, mesh=mesh)
            asked = [*tokens[:3, :8].tolist(), *tokens[3:6, :20].tolist()]  # the longer ones in parts
            sampled = sampler.sample(asked, range(6), 2, params=params)
        local = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
    return value, [c.token_ids for c in sampled], local


def compare(found, expected, parts):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0], expected[0])
    assert found[1] == expected[1], (found[1], expected[1])
    assert found[2] < 1.3 * expected[2] / parts, "each device holds its part of the parameters"


one = make_mesh({}, jax.devices()[:1])
if sys.argv[1] == "rules":
    few = models.ModelConfig(96, 32, 2, 8, 2, 8, 64, attention_bias=True, initializer_range=0.2)
    expected = outcome(one, config=few, sample=True)
    rules = DEFAULT_RULES.changed("kv_heads=,embed=,batch=data,slots=data")  # for 4 devices do not divide 2
    compare(outcome(make_mesh({"data": 2, "tensor": 4}), rules, few, sample=True), expected, 4)
    rules = DEFAULT_RULES.changed("embed=data+fsdp,vocab=,mlp=")
    found = outcome(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), rules, few, sample=False)
    compare((found[0], expected[1], found[2]), expected, 6)
else:
    shapes = [tuple(map(int, text.split(","))) for text in sys.argv[2:]]
    expected = outcome(one)
    for data, fsdp, tensor in shapes:
        compare(outcome(make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})), expected, fsdp * tensor)
try:
    models.create(config, key, mesh=make_mesh({"tensor": 8}), scan_layers=True)
    bad = models.ModelConfig(96, 32, 2, 8, 4, 8, 64)
    models.create(bad, key, mesh=make_mesh({"tensor": 8}))
except ValueError as error:
    assert "kv_heads" in str(error) and "tensor=8" in str(error), error
else:
    raise AssertionError("4 key-value heads were split over 8 devices")
print("equal")
"""
ALL = [(d, f, 8 // (d * f)) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]


def run(*arguments):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("equal\n")


@pytest.mark.slow
def test_one_mesh_of_all_three_axes():
    run("train", "2,2,2")


@pytest.mark.slow
def test_every_factorisation_trains_alike():
    run("train", *(",".join(map(str, shape)) for shape in ALL))


@pytest.mark.slow
def test_another_table_of_rules_computes_the_same():
    run("rules")


@pytest.mark.slow
def test_samples_are_the_same_on_a_mesh():
    run("sample", "2,2,2", "1,1,8", "1,8,1")
