"""Operations that a model needs, beside those of its products as traced."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mlagent_jax import models
from mlagent_jax.models import flops
from mlagent_jax.runs.speed import Speed
from tools.planning import flops as traced

SHAPE = models.ModelConfig(
    vocab_size=96, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
)
ROWS, TIME = 2, 48


@pytest.mark.parametrize("tied", [True, False])
def test_a_forward_pass_takes_the_products_of_its_program(tied):
    shape = dataclasses.replace(SHAPE, tie_word_embeddings=tied)
    graph, params = models.abstract(shape)
    tokens = jax.ShapeDtypeStruct((ROWS, TIME), jnp.int32)

    def scores(params, tokens):
        hidden = models.hidden_states(graph, params, tokens)
        return models.token_log_probs(graph, params, hidden[:, :10], tokens[:, :10])

    # A block of the xla kernel compares all its pairs, and masks those of later tokens.
    counted = traced.count(jax.make_jaxpr(scores)(params, tokens))
    assert flops.forward(shape, ROWS * TIME, ROWS * TIME * TIME, ROWS * 10) == counted


def test_an_update_needs_the_prompt_of_a_group_once_and_adapters_no_gradients_of_weights():
    once, split = Speed(SHAPE, False), [(20, [5]), (20, [5])]
    shared = once.rl([(20, [5, 5])], 1, 1.0)["model_tflops"]
    # 30 tokens and 350 pairs of 25 each: by hand, 5 = 2 scorings and 3 passes of training.
    pairs = 20 * 21 / 2 + 2 * (5 * 20 + 5 * 6 / 2)
    assert shared == pytest.approx(5 * flops.forward(SHAPE, 30, pairs, 10) / 1e12)
    assert shared < once.rl(split, 1, 1.0)["model_tflops"]
    assert Speed(SHAPE, True).rl(split, 2, 1.0)["model_tflops"] == pytest.approx(
        6 / 8 * once.rl(split, 2, 1.0)["model_tflops"]
    )


def test_utilisation_is_told_where_the_peak_of_the_device_is_known(monkeypatch):
    assert "mfu" not in Speed(SHAPE, False).rl([(20, [5])], 1, 1.0)  # a CPU
    monkeypatch.setattr("mlagent_jax.runs.speed.peak_flops", lambda kind: 1e12)
    rates = Speed(SHAPE, False).rl([(20, [5])], 1, 1.0)
    assert rates["mfu"] == pytest.approx(rates["model_tflops"] / jax.device_count())
