"""Loss, gradients and samples are the same on one device and on two processes of four (simulated) devices each; a
process that is killed takes the other with it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, numpy as np
from jax.experimental import multihost_utils
from mlagent_jax import models
from mlagent_jax.parallelism import DEFAULT_RULES, make_mesh
from mlagent_jax.sampling import SamplerConfig, TokenSampler

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
assert (jax.process_count(), jax.local_device_count(), jax.device_count()) == (2, 4, 8)
config = models.ModelConfig(96, 32, 2, 8, 8, 8, 64, attention_bias=True, initializer_range=0.2)
tokens = np.random.default_rng(0).integers(0, 96, (8, 21), dtype=np.int32)


def outcome(mesh):
    with jax.set_mesh(mesh):
        graph, params = models.create(config, jax.random.key(0), mesh=mesh)
        rows = jax.sharding.NamedSharding(mesh, DEFAULT_RULES.spec(("batch",), mesh))
        placed = jax.make_array_from_callback(tokens.shape, rows, lambda index: tokens[index])

        @jax.jit
        @jax.value_and_grad
        def loss(params, tokens):
            hidden = models.hidden_states(graph, params, tokens[:, :-1])
            return models.token_log_probs(graph, params, hidden, tokens[:, 1:], chunk_size=7)[0].mean()

        # Split over all eight devices: no process holds it whole.
        kernel = params["layers"]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // mesh.size
        return loss(params, placed)


expected = jax.device_get(outcome(make_mesh({}, jax.local_devices()[:1])))
value, gradients = outcome(make_mesh({"fsdp": 4, "tensor": 2}))
assert not gradients["layers"]["mlp"]["up"]["kernel"].is_fully_addressable
found = (float(value), multihost_utils.process_allgather(gradients, tiled=True))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def samples(mesh):
    with jax.set_mesh(mesh):
        graph, params = models.create(config, jax.random.key(0), mesh=mesh)
        settings = SamplerConfig(max_new_tokens=6, slots=8, buckets=(8,), prefill_rows=4)
        sampler = TokenSampler(graph, settings, mesh=mesh)
        made = sampler.sample(tokens[:6, :8].tolist(), range(6), 2, params=params)
        return [completion.token_ids for completion in made]


assert samples(make_mesh({"fsdp": 4, "tensor": 2})) == samples(make_mesh({}, jax.local_devices()[:1]))
print("equal")
"""


LOSS = """
import os, signal, sys

os.environ |= {"JAX_COORDINATOR_ADDRESS": sys.argv[1], "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": sys.argv[2]}
from mlagent_jax.runtime import processes

processes.join()
processes.meet()
if sys.argv[2] == sys.argv[3]:
    os.kill(os.getpid(), signal.SIGKILL)
processes.gather(lambda: 0)
print("went on without the other")
"""


@pytest.fixture
def two():
    """A function that starts a program in two processes; it is given their address, and their numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []

    def start(program, *arguments, **variables):
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **variables,
        }
        for index in range(2):
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, address, str(index), *arguments],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()


@pytest.mark.slow
def test_two_processes_train_and_sample_as_one_device_does(two):
    for process in two(PROGRAM):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-4000:]
        assert out.endswith("equal\n")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_takes_the_other_with_it(two, lost):
    """Wherever that is: here it waits for the other on the host."""
    processes = two(LOSS, str(lost), MLAGENT_HEARTBEAT_SECONDS="15")
    ends = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [
        -signal.SIGKILL if index == lost else -signal.SIGABRT for index in range(2)
    ], ends
    assert not any(out for out, _ in ends)
