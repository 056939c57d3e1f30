"""Checkpoints come back bit by bit, onto any mesh, and survive the death of who writes them; in a bucket too."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from mlagent_jax.checkpoints.orbax import Checkpointer, CheckpointError


@pytest.fixture(params=["local", pytest.param("bucket", marks=pytest.mark.slow)])
def directory(request, tmp_path):
    """An empty folder, and one of a bucket, where nothing can be renamed and each file appears at once."""
    if request.param == "local":
        return epath.Path(tmp_path)
    return request.getfixturevalue("bucket") / tmp_path.name


def make_arrays(step=0):
    key = jax.random.key(step)
    params = {
        "layers": {"kernel": jax.random.normal(key, (2, 4, 8)).astype(jnp.bfloat16)},
        "norm": jax.random.normal(key, (8,)).at[0].set(jnp.nan),  # bits, not values
    }
    return {
        "params": params,
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params),
        "key": jax.random.key_data(key),
        "step": jnp.int32(step),
    }


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_arrays_and_json_come_back_bit_by_bit(directory):
    arrays = make_arrays()
    extra = {"consumed": ["a", "b"], "kl": {"coefficient": 1 / 3}, "position": 2**53 + 1, "none": None}
    with Checkpointer(directory / "new") as checkpointer:
        assert checkpointer.latest() is None
        checkpointer.save(5, arrays, extra)
    with Checkpointer(directory / "new") as checkpointer:
        assert checkpointer.latest() == 5
        restored, restored_extra = checkpointer.restore(5, arrays)
        assert checkpointer.extra(5) == restored_extra == extra
    assert_same_bits(restored, arrays)
    draw = jax.random.uniform(jax.random.wrap_key_data(restored["key"]))
    assert draw == jax.random.uniform(jax.random.key(0))


def test_arrays_may_be_donated_and_json_changed_while_they_are_written(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    arrays = {f"{i}": jnp.full((200, 1000), float(i)) for i in range(10)}
    expected = jax.tree.map(np.array, arrays)
    extra = {"seen": [1]}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, arrays, extra)
        extra["seen"].append(2)
        arrays = jax.block_until_ready(overwrite(arrays))
        checkpointer.wait()
        restored, restored_extra = checkpointer.restore(1, arrays)
    assert_same_bits(restored, jax.tree.map(jnp.array, expected))
    assert restored_extra == {"seen": [1]}


def test_the_latest_stay_and_the_best_beside_them(directory):
    with Checkpointer(directory, keep=2, keep_best=1) as checkpointer:
        for step, metric in enumerate([0.1, 0.9, None, 0.3, 0.2]):
            checkpointer.save(step, {"x": jnp.ones(2)}, {}, metric)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3, 4]
        assert checkpointer.best() == 1


def test_steps_at_an_interval_stay_for_good(directory):
    with Checkpointer(directory, keep=1, keep_every=3) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, {"x": jnp.ones(2)}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [3, 6, 8]


def test_a_part_can_be_restored_without_the_rest(directory):
    arrays = make_arrays()
    with Checkpointer(directory) as checkpointer:
        checkpointer.save(1, arrays, {})
        checkpointer.wait()
    with Checkpointer(directory, read_only=True) as reader:
        restored, _ = reader.restore(1, {"params": arrays["params"]}, partial=True)
        assert reader.shapes(1)["params/layers/kernel"].shape == (2, 4, 8)
    assert_same_bits(restored, {"params": arrays["params"]})


@pytest.mark.slow
def test_what_was_saved_on_one_mesh_restores_onto_another(tmp_path):
    """In a process of its own, which simulates 8 devices."""
    script = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mlagent_jax.checkpoints.orbax import Checkpointer
def on(shape, spec):
    mesh = jax.make_mesh(shape, ("a", "b"), devices=jax.devices()[:shape[0] * shape[1]])
    return NamedSharding(mesh, P(*spec))
x = jnp.arange(64.0, dtype=jnp.bfloat16).reshape(8, 8)
with Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, {"x": jax.device_put(x, on((4, 2), ("a", "b")))}, {})
    checkpointer.wait()
    for place in (on((2, 4), ("b", "a")), on((8, 1), (None, "a")), on((1, 1), ()), on((2, 1), ())):
        target = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        restored = checkpointer.restore(1, {"x": target})[0]["x"]
        assert restored.sharding == place, restored.sharding
        assert np.array_equal(np.asarray(restored), np.asarray(x))
print("whole")
"""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env={**os.environ, **flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "whole", done.stderr


SAVE_FOR_EVER = """
import sys, itertools, jax.numpy as jnp
from mlagent_jax.checkpoints.orbax import Checkpointer
checkpointer = Checkpointer(sys.argv[1], keep=2)
first = (checkpointer.latest() or 0) + 1
for step in itertools.count(first):
    checkpointer.save(step, {f"{i}": jnp.full((100, 1000), step * 100 + i) for i in range(20)}, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_kill_9_during_a_save_leaves_the_step_before_it_whole(directory, kills):
    rng = np.random.default_rng(kills)
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, directory],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            started = [int(child.stdout.readline()) for _ in range(3)][-1]
            time.sleep(rng.uniform(0, 0.3))  # somewhere within the saves that follow
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        with Checkpointer(directory, read_only=True) as checkpointer:
            latest = checkpointer.latest()
            assert latest >= started - 1  # `save` of a step returns when the one before it is whole
            for step in checkpointer.steps():
                target = {f"{i}": jax.ShapeDtypeStruct((100, 1000), jnp.int32) for i in range(20)}
                arrays, extra = checkpointer.restore(step, target)
                assert extra == {"step": step}
                for i in range(20):
                    assert np.all(np.asarray(arrays[f"{i}"]) == step * 100 + i)
    with Checkpointer(directory, keep=2) as checkpointer:  # the next save cleans up what was left half-written
        checkpointer.save(latest + 1, {"x": jnp.ones(1)}, {})
        checkpointer.wait()
        assert sorted(int(path.name) for path in directory.iterdir()) == checkpointer.steps()


DIE_REMOVING = """
import os, sys, jax.numpy as jnp
from etils import epath
from mlagent_jax.checkpoints.orbax import Checkpointer

def cut_short(path, **_):
    (path / "arrays" / "_METADATA").unlink()
    os._exit(9)

epath.gpath.PosixGPath.rmtree = cut_short
with Checkpointer(sys.argv[1], keep=1) as checkpointer:
    for step in (1, 2):
        checkpointer.save(step, {"x": jnp.full(3, step)}, {})
"""


@pytest.mark.slow
def test_a_removal_that_is_cut_short_in_a_bucket_leaves_no_step_that_looks_whole(bucket, tmp_path):
    directory = bucket / tmp_path.name
    child = subprocess.run(
        [sys.executable, "-c", DIE_REMOVING, directory],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert child.returncode == 9
    assert {path.name for path in directory.iterdir()} == {"1", "2"}
    with Checkpointer(directory, keep=1) as checkpointer:
        assert checkpointer.steps() == [2]
        assert np.all(np.asarray(checkpointer.restore(2, {"x": jnp.zeros(3, jnp.int32)})[0]["x"]) == 2)
        checkpointer.save(3, {"x": jnp.ones(3)}, {})
        checkpointer.wait()
        assert [path.name for path in directory.iterdir()] == ["3"]


def test_a_step_is_saved_once(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, {"x": jnp.ones(2)}, {})
        for step in (4, 3):
            with pytest.raises(CheckpointError, match=rf"step {step} was not saved.*latest there is 4"):
                checkpointer.save(step, {"x": jnp.zeros(2)}, {})


def test_a_mismatch_names_the_array(tmp_path):
    def struct(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": {"w": jnp.ones((2, 3))}, "b": jnp.ones(1)}, {})
        checkpointer.wait()
        for target, message in [
            ({"a": {"w": struct(2, 4)}, "b": struct(1)}, r"'a/w' is float32\[2, 3\], asked for is float32\[2, 4\]"),
            ({"a": {"w": struct(2, 3)}, "b": struct(1, dtype=jnp.bfloat16)}, r"'b' is float32.*bfloat16"),
            ({"a": {"w": struct(2, 3), "v": struct(1)}, "b": struct(1)}, r"lacks array 'a/v'"),
            ({"a": {"w": struct(2, 3)}}, r"has array 'b'.*not asked for"),
        ]:
            with pytest.raises(CheckpointError, match=message):
                checkpointer.restore(1, target)
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 7.*\[1\]"):
            checkpointer.restore(7, {})


def test_what_cannot_be_saved_is_refused_at_once(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match="step 1 has no array"):
            checkpointer.save(1, {"empty": {}}, {})
        with pytest.raises(CheckpointError, match=r"'rng/0' is a typed random key"):
            checkpointer.save(1, {"rng": [jax.random.key(0)]}, {})
        with pytest.raises(TypeError):
            checkpointer.save(1, {"x": jnp.ones(1)}, {"array": jnp.ones(1)})
        with pytest.raises(CheckpointError, match="metric of step 1 is nan"):
            checkpointer.save(1, {"x": jnp.ones(1)}, {}, metric=float("nan"))
        assert checkpointer.latest() is None
    with pytest.raises(CheckpointError, match="keep is 0"):
        Checkpointer(tmp_path, keep=0)
