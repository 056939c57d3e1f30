"""Compilations are counted, once a shape."""

import jax
import jax.numpy as jnp

from mlagent_jax.runtime.compilations import Compilations


def test_a_shape_is_compiled_once_and_a_new_shape_is_counted():
    def program(x):
        return jnp.tanh(x) @ x.T * 1.25

    jitted, heard = jax.jit(program), Compilations()
    inputs = [jnp.ones((n, 3)) for n in (4, 4, 4, 5)]
    heard.take()
    counts = []
    for x in inputs:
        jitted(x).block_until_ready()
        counts.append(heard.take()["compilations"])
    assert counts == [1, 0, 0, 1]
