"""The sampler uses a trainer's arrays where they are, and makes a copy of the others once a policy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax import models
from mlagent_jax.sampling import SamplerConfig, TokenSampler
from mlagent_jax.sampling.weights import Preparation, apart

SHAPE = models.ModelConfig(96, 32, 3, 4, 2, 8, 48)


@pytest.fixture
def params():
    return models.create(SHAPE, jax.random.key(0))[1]


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


def outside(params):
    return {name: part for name, part in params.items() if name != "layers"}


def assert_equal(found, params, dtype=jnp.float32):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(models.layer_params(params)), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs.astype(dtype))


def test_layers_of_their_own_are_used_where_they_are(params):
    split = models.layer_params(params)
    prepare = Preparation("float32")
    assert prepare.copied_bytes(split) == 0
    assert pointers(prepare(split).params) == pointers(split)
    assert prepare(prepare(split)).params is not None, "weights are weights"


def test_of_stacked_layers_one_copy_is_made_a_version_and_nothing_else(params):
    prepare = Preparation()
    stacked = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    assert prepare.copied_bytes(params) == stacked
    first, second = prepare(params).params, prepare(params).params
    assert_equal(first, params)
    assert pointers(first) == pointers(second), "made once"
    assert pointers(outside(first)) == pointers(outside(params)), "not copied at all"
    assert prepare.copied_bytes(params) == 0
    following = {**params, "layers": jax.tree.map(lambda leaf: leaf + 1, params["layers"])}
    assert_equal(prepare(following).params, following)
    assert prepare.copied_bytes(params) == stacked, "what was made of the version before is let go"
    prepare.release()
    assert prepare.copied_bytes(following) == stacked


def test_another_dtype_is_cast_once_a_version(params):
    prepare = Preparation("bfloat16")
    first = prepare(params).params
    assert_equal(first, params, jnp.bfloat16)
    assert pointers(first) == pointers(prepare(params).params)


def test_weights_outlive_arrays_that_are_donated_and_share_the_others(params):
    expected = models.layer_params(jax.tree.map(np.array, params))
    base, trained = {"embedder": params["embedder"]}, {k: v for k, v in params.items() if k != "embedder"}
    weights = Preparation()(params, donated=trained).params
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)(trained)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trained))
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
    assert pointers(weights["embedder"]) == pointers(base["embedder"])


def test_where_stacked_layers_are_read_in_place_nothing_is_copied_and_samples_are_the_same():
    graph, params = models.create(SHAPE, jax.random.key(0))
    prepare = Preparation("float32", stacked=True)
    weights = prepare(params)
    assert prepare.copied_bytes(params) == 0
    assert pointers(weights.params) == pointers(params)
    sampler = TokenSampler(graph, SamplerConfig(max_new_tokens=4, slots=2, buckets=(8,)))
    asked = [[1, 2, 3], list(range(1, 13))]  # the second in two parts
    found, expected = (sampler.sample(asked, [0, 1], params=given) for given in (weights, params))
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]


def test_a_loaded_checkpoint_is_cut_apart_without_a_second_copy(params):
    expected = models.layer_params(jax.tree.map(np.array, params))
    found = apart(params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params["layers"]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert pointers(Preparation()(found).params) == pointers(found)
