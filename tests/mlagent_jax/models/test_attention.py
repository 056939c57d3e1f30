import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.models import causal_attention, choose_kernel
from mlagent_jax.models.attention import _announce
from mlagent_jax.models.splash import splash_attention
from mlagent_jax.parallelism import DEFAULT_RULES

attention = jax.jit(causal_attention, static_argnames="kernel")
theirs = jax.jit(jax.nn.dot_product_attention, static_argnames="is_causal")


def heads(count, time, seed, batch=2, head_dim=8):
    return jax.random.normal(jax.random.key(seed), (batch, time, count, head_dim))


@pytest.mark.parametrize(("time", "kv_heads"), [(1, 2), (64, 4), (65, 2), (600, 1)])
def test_xla_equals_jax_nn(time, kv_heads):
    query, key, value = heads(4, time, 0), heads(kv_heads, time, 1), heads(kv_heads, time, 2)
    expected = theirs(query, key, value, is_causal=True)
    np.testing.assert_allclose(attention(query, key, value), expected, atol=2e-6)


@pytest.mark.slow
def test_xla_keeps_segments_apart():
    query, key, value = heads(4, 130, 0), heads(2, 130, 1), heads(2, 130, 2)
    segments = jnp.asarray([[1] * 70 + [2] * 60, [1] * 3 + [2] * 100 + [0] * 27])
    mask = (segments[:, :, None] == segments[:, None])[:, None]
    expected = theirs(query, key, value, is_causal=True, mask=mask)
    np.testing.assert_allclose(attention(query, key, value, segment_ids=segments), expected, atol=2e-6)


@pytest.mark.slow
def test_gradients_equal_those_of_jax_nn():
    def gradients(function):
        return jax.jit(jax.grad(lambda q, k, v: (function(q, k, v, is_causal=True) ** 2).sum(), (0, 1, 2)))(*arguments)

    def ours(query, key, value, *, is_causal):
        return causal_attention(query, key, value)

    arguments = heads(4, 100, 0), heads(2, 100, 1), heads(2, 100, 2)
    found, expected = gradients(ours), gradients(jax.nn.dot_product_attention)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def test_a_kernel_that_cannot_run_is_an_error_and_no_fall_back():
    assert choose_kernel("auto", "cpu") == "xla"
    assert choose_kernel("auto", "tpu") == "splash"
    assert choose_kernel("cudnn", "gpu") == "cudnn"
    with pytest.raises(ValueError, match="'cudnn' runs on 'gpu', this is 'cpu'"):
        choose_kernel("cudnn", "cpu")
    with pytest.raises(ValueError, match="'flash' is unknown"):
        choose_kernel("flash", "cpu")


def test_each_choice_is_logged_once(caplog):
    _announce.cache_clear()  # of what other tests chose
    with caplog.at_level("INFO", logger="absl"):
        for kernel, platform in (("auto", "cpu"), ("auto", "tpu"), ("auto", "cpu")):
            choose_kernel(kernel, platform)
    assert [record.getMessage() for record in caplog.records] == [
        "attention kernel: xla (requested: auto, on cpu)",
        "attention kernel: splash (requested: auto, on tpu)",
    ]


@pytest.mark.slow
def test_cudnn_refuses_packed_segments():
    query = heads(4, 8, 0)
    with pytest.raises(ValueError, match="packed segments"):
        causal_attention(query, query, query, segment_ids=jnp.ones((2, 8), jnp.int32), kernel="cudnn")


@pytest.mark.slow
def test_splash_equals_xla_in_value_and_gradient():
    query, key, value = heads(4, 130, 0, head_dim=128), heads(2, 130, 1, head_dim=128), heads(2, 130, 2, head_dim=128)
    segments = jnp.asarray([[1] * 70 + [2] * 60, [1] * 3 + [2] * 100 + [0] * 27])
    valid = (segments > 0)[:, :, None, None]

    def outcome(function):
        def value_and_output(query, key, value):
            out = jnp.where(valid, function(query, key, value), 0)
            return (out**2).sum(), out

        return jax.jit(jax.grad(value_and_output, (0, 1, 2), has_aux=True))(query, key, value)

    found = outcome(lambda q, k, v: splash_attention(q, k, v, segments, DEFAULT_RULES, interpret=True))
    expected = outcome(lambda q, k, v: causal_attention(q, k, v, segment_ids=segments))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def shared_prompts():
    """Segments of two rows of 130 tokens, and the one that each token attends to besides: its prompt."""
    segments = jnp.asarray([[1] * 60 + [2] * 30 + [3] * 40, [1] * 20 + [2] * 50 + [3] * 30 + [4] * 20 + [0] * 10])
    return segments, jnp.asarray([[1] * 130, [1] * 70 + [3] * 50 + [0] * 10])


@pytest.mark.slow
def test_xla_attends_to_the_own_segment_and_to_the_prompt():
    query, key, value = heads(4, 130, 0), heads(2, 130, 1), heads(2, 130, 2)
    segments, prompts = shared_prompts()
    mask = (segments[:, :, None] == segments[:, None]) | (prompts[:, :, None] == segments[:, None])
    expected = theirs(query, key, value, is_causal=True, mask=mask[:, None])
    found = attention(query, key, value, segment_ids=segments, prompt_ids=prompts)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    with pytest.raises(ValueError, match="pass segment_ids"):
        attention(query, key, value, prompt_ids=prompts)


@pytest.mark.slow
def test_splash_joins_two_segments_under_one_softmax_in_value_and_gradient():
    query, key, value = heads(4, 130, 0, head_dim=128), heads(2, 130, 1, head_dim=128), heads(2, 130, 2, head_dim=128)
    segments, prompts = shared_prompts()
    valid = (segments > 0)[:, :, None, None]

    def outcome(function):
        def value_and_output(query, key, value):
            out = jnp.where(valid, function(query, key, value), 0)
            return (out**2).sum(), out

        return jax.jit(jax.grad(value_and_output, (0, 1, 2), has_aux=True))(query, key, value)

    found = outcome(
        lambda q, k, v: splash_attention(q, k, v, segments, DEFAULT_RULES, prompt_ids=prompts, interpret=True)
    )
    expected = outcome(lambda q, k, v: causal_attention(q, k, v, segment_ids=segments, prompt_ids=prompts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
