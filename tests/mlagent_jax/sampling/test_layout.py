"""The sampler's own sharding rules: which axes split what, and that decoding moves no weights."""

import math
import os
import subprocess
import sys

import pytest

from mlagent_jax import models
from mlagent_jax.parallelism import DEFAULT_RULES, abstract_mesh
from mlagent_jax.sampling.layout import for_sampling, sampling_rules

QWEN_7B = models.ModelConfig(152_064, 3584, 28, 28, 4, 128, 18_944, attention_bias=True)


@pytest.mark.parametrize(
    ("shape", "heads", "slots"),
    [
        ({"fsdp": 4}, ("fsdp",), ()),
        ({"fsdp": 8}, (), ("fsdp",)),
        ({"fsdp": 4, "tensor": 4}, ("tensor",), ("fsdp",)),
        ({"fsdp": 2, "tensor": 4}, ("tensor",), ("fsdp",)),
        ({"data": 2, "tensor": 2}, ("data", "tensor"), ()),
    ],
)
def test_heads_take_what_divides_them_and_slots_the_rest(shape, heads, slots):
    devices = math.prod(shape.values())
    mesh = abstract_mesh(shape, devices)
    rules = sampling_rules(QWEN_7B, mesh, DEFAULT_RULES)
    assert rules.mesh_axes("kv_heads", mesh) == rules.mesh_axes("heads", mesh) == heads
    assert rules.mesh_axes("slots", mesh) == slots
    assert math.prod(mesh.shape[axis] for axis in rules.mesh_axes("mlp", mesh)) == devices
    assert math.prod(mesh.shape[axis] for axis in rules.mesh_axes("vocab", mesh)) == devices
    assert rules.mesh_axes("embed", mesh) == ()


def test_a_config_changes_rows_and_one_device_changes_nothing():
    mesh = abstract_mesh({"fsdp": 4}, 4)
    rules = sampling_rules(QWEN_7B, mesh, DEFAULT_RULES, "heads=,kv_heads=,batch=fsdp,slots=fsdp")
    assert rules.mesh_axes("heads", mesh) == () and rules.mesh_axes("slots", mesh) == ("fsdp",)
    with pytest.raises(ValueError, match="splits over 'nothing'"):
        sampling_rules(QWEN_7B, mesh, DEFAULT_RULES, "heads=nothing")
    graph, _ = models.abstract(models.ModelConfig(96, 32, 2, 8, 4, 8, 64))
    assert for_sampling(graph, abstract_mesh({}, 1)) is graph


PROGRAM = """
import sys
import jax
from mlagent_jax import models
from mlagent_jax.parallelism import make_mesh
from mlagent_jax.sampling import SamplerConfig, engine
from mlagent_jax.sampling.layout import for_sampling
from mlagent_jax.sampling.rows import Rows
from mlagent_jax.sampling.weights import Preparation
from tools.planning import hlo

config = models.ModelConfig(4096, 256, 2, 8, 4, 32, 1024, attention_bias=True)
mesh = make_mesh({"fsdp": 4, "tensor": 2})
with jax.set_mesh(mesh):
    trained, params = models.create(config, jax.random.key(0), mesh=mesh)
    graph = for_sampling(trained, mesh)
    prepare = Preparation(graph=graph)
    weights = prepare(params).params
    assert prepare.moved_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    moved = prepare.moved_so_far
    assert moved[0] == prepare.moved_bytes and moved[1] > 0
    prepare(params)
    assert prepare.moved_bytes == 0 and prepare.moved_so_far == moved, "one resharding a policy version"
    largest = max(shard.data.nbytes for leaf in jax.tree.leaves(weights) for shard in leaf.addressable_shards[:1])
    settings = SamplerConfig(max_new_tokens=8, slots=8, samples=2)
    state = engine.empty_slots(graph, settings, 64, weights)
    taken = jax.numpy.zeros((8,), "int32")
    groups = Rows(settings, 4).groups([])
    compiled = engine.decode.lower(graph, settings, weights, state, groups, jax.numpy.bool_(False), taken).compile()
    moved = hlo.collectives(hlo.instructions(compiled.as_text()))
    total = sum(collective.bytes for collective in moved)
    weight = 256 * 1024 * 4
    print(total, weight, largest)
    assert 0 < total < weight, "less than one matrix of one layer moves"
print("resident")
"""


@pytest.mark.slow
def test_decoding_moves_activations_and_never_weights():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("resident\n")
