"""`python -m mlagent_jax.train`, which also tells what this process trained on in each iteration of rl, and what that
made of the parameters: a line of JSON an iteration, in the file that $MLAGENT_TEST_TOLD names."""

import dataclasses
import hashlib
import json
import os

import jax
import numpy as np

from mlagent_jax import train
from mlagent_jax.rl.learner import Learner

update = Learner.update


def digest(arrays):
    """Of a pytree, as far as this process can tell without asking another."""
    found = hashlib.sha256()
    for array in jax.tree.leaves(arrays):
        found.update(own_copy(array).tobytes() if isinstance(array, jax.Array) else np.asarray(array).tobytes())
    return found.hexdigest()


def own_copy(array):
    """The whole of a global array, put together of what this process's devices hold."""
    whole, held = np.empty(array.shape, array.dtype), np.zeros(array.shape, bool)
    for shard in array.addressable_shards:
        whole[shard.index], held[shard.index] = shard.data, True
    assert held.all(), "the mesh gives no process a copy of its own"
    return whole


def update_and_tell(learner, batch, taken, iteration):
    values = update(learner, batch, taken, iteration)
    told = {
        "iteration": iteration,
        "jobs": [row.job.id for row in taken],
        "masked": [row.job.id for row, used in zip(taken, batch.mask.any(axis=1), strict=True) if not used],
        "batch": digest(dataclasses.asdict(batch)),
        "params": digest(learner.params),
    }
    with open(os.environ["MLAGENT_TEST_TOLD"], "a") as file:
        file.write(json.dumps(told) + "\n")
    return values


if __name__ == "__main__":
    Learner.update = update_and_tell
    train._program()
