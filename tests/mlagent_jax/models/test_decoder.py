"""What the pure functions of the decoder promise, whatever the weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax import models

CONFIG = models.ModelConfig(61, 32, 2, 4, 2, 8, 48, model_type="qwen3", qk_norm=True, initializer_range=0.3)

hidden_states = jax.jit(models.hidden_states, static_argnums=0, static_argnames=("remat", "compute_dtype"))
token_log_probs = jax.jit(models.token_log_probs, static_argnums=0, static_argnames="chunk_size")


@pytest.fixture(scope="module")
def model():
    return models.create(CONFIG, jax.random.key(0))


def tokens(*shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, CONFIG.vocab_size, shape), jnp.int32)


@pytest.mark.slow
def test_packed_segments_are_what_each_is_alone(model):
    first, second = tokens(1, 70), tokens(1, 25)[:, ::-1]
    packed = jnp.concatenate((first, second, jnp.zeros((1, 5), jnp.int32)), axis=1)
    segments = jnp.asarray([[1] * 70 + [2] * 25 + [0] * 5])
    together = hidden_states(*model, packed, segment_ids=segments)
    np.testing.assert_allclose(together[:, :70], hidden_states(*model, first), atol=2e-5)
    np.testing.assert_allclose(together[:, 70:95], hidden_states(*model, second), atol=2e-5)
    assert jnp.isfinite(together).all()


def test_a_token_sees_none_that_follow(model):
    row = tokens(1, 80)
    changed = row.at[0, 66].set((row[0, 66] + 1) % CONFIG.vocab_size)
    before, after = hidden_states(*model, row), hidden_states(*model, changed)
    np.testing.assert_array_equal(before[:, :66], after[:, :66])
    assert not np.allclose(before[:, 66:], after[:, 66:])


@pytest.mark.parametrize("chunk_size", [7, 20])
def test_log_probs_and_entropy_are_those_of_the_whole_vocabulary(model, chunk_size):
    graph, params = model
    hidden = hidden_states(graph, params, tokens(2, 20))
    targets = tokens(2, 20)[::-1]
    whole = jax.nn.log_softmax(models.logits(graph, params, hidden) / 0.7)
    log_probs, entropy = models.token_log_probs(graph, params, hidden, targets, temperature=0.7, chunk_size=chunk_size)
    np.testing.assert_allclose(log_probs, jnp.take_along_axis(whole, targets[..., None], -1)[..., 0], atol=1e-5)
    np.testing.assert_allclose(entropy, -(jnp.exp(whole) * whole).sum(-1), atol=1e-5)


def loss(graph, params, remat, chunk_size):
    hidden = models.hidden_states(graph, params, tokens(2, 20), remat=remat)
    log_probs, entropy = models.token_log_probs(graph, params, hidden, tokens(2, 20), chunk_size=chunk_size)
    return (log_probs + 0.1 * entropy).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("scan_layers", "remat", "chunk_size"), [(False, "full", 6), (True, "dots", None)])
def test_ways_to_save_memory_change_no_gradient(model, scan_layers, remat, chunk_size):
    graph, params = model
    expected = jax.jit(jax.grad(lambda p: loss(graph, p, "none", None)))(params)
    other = dataclasses.replace(graph, scan_layers=scan_layers)
    found = jax.jit(jax.grad(lambda p: loss(other, p, remat, chunk_size)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.slow
def test_chunks_keep_the_logits_of_a_sequence_from_ever_existing():
    config = dataclasses.replace(CONFIG, vocab_size=4096, num_layers=1)
    graph, params = models.abstract(config)
    shape = jax.ShapeDtypeStruct((4, 512), jnp.int32)

    def value(params, tokens):
        hidden = models.hidden_states(graph, params, tokens)
        return models.token_log_probs(graph, params, hidden, tokens, chunk_size=16)[0].mean()

    memory = jax.jit(jax.grad(value)).lower(params, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 512 * 4096 * 4, "less than one fp32 [batch, time, vocab]"


def test_compute_dtype_is_that_of_the_activations(model):
    hidden = hidden_states(*model, tokens(1, 8), compute_dtype=jnp.bfloat16)
    assert hidden.dtype == jnp.bfloat16
    exact = hidden_states(*model, tokens(1, 8))
    assert np.abs(hidden.astype(jnp.float32) - exact).mean() < 0.05 * np.abs(exact).mean() + 0.05


def test_abstract_is_the_shape_of_create(model):
    _, shapes = models.abstract(CONFIG)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), model[1])


def test_an_unknown_policy_of_remat_is_refused(model):
    with pytest.raises(ValueError, match="remat='some'"):
        hidden_states(*model, tokens(1, 4), remat="some")
