"""Adapters: nothing at first, the same as PEFT's once trained, and the base is never touched."""

import functools
import json

import jax
import jax.numpy as jnp
import needs
import numpy as np
import optax
import pytest

from mlagent_jax import models
from mlagent_jax.checkpoints import hugging_face, peft
from mlagent_jax.checkpoints import safetensors as tensor_files
from mlagent_jax.models import lora
from mlagent_jax.optim.optimizer import init_state, make_optimizer, with_learning_rate
from mlagent_jax.sft.step import sft_step

ALL = ("query", "key", "value", "output", "gate", "up", "down", "head")
SETTINGS = models.LoRA(rank=3, alpha=6.0, targets=ALL)
SHAPE = models.ModelConfig(64, 16, 2, 4, 2, 4, 24, attention_bias=True, initializer_range=0.3)
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 9))


@pytest.fixture(scope="module")
def model():
    """Graph and parameters of a base, and the graph and shapes of its adapters."""
    graph, shapes = models.abstract(SHAPE)
    adapted = lora.adapted(graph, SETTINGS)
    return graph, random(shapes), adapted, lora.abstract(adapted)


def random(shapes, seed=2, size=0.3):
    """Parameters as if they had been trained: none of them is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def logits(graph, params, tokens=TOKENS):
    return models.logits(graph, params, models.hidden_states(graph, params, jnp.asarray(tokens)))


@pytest.mark.slow
def test_merged_weights_compute_what_the_adapted_policy_does(model):
    graph, base, adapted, adapters = model
    trained = random(adapters)
    wanted = logits(adapted, lora.join(base, trained))
    assert np.abs(wanted - logits(graph, base)).max() > 0.1
    np.testing.assert_allclose(logits(graph, lora.merge(base, trained, SETTINGS)), wanted, atol=2e-4)


def test_adapters_one_after_the_other_are_one_of_both_ranks(model):
    _, base, _, adapters = model
    first, second = random(adapters, 2), random(adapters, 3)
    both = models.LoRA(2 * SETTINGS.rank, 2 * SETTINGS.alpha, ALL)
    in_turn = lora.merge(lora.merge(base, first, SETTINGS), second, SETTINGS)
    at_once = lora.merge(base, lora.concatenate(first, second), both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), in_turn, at_once)


def test_only_targets_have_adapters_and_they_are_split_with_their_map():
    graph, _ = models.abstract(SHAPE)
    adapters = lora.abstract(lora.adapted(graph, models.LoRA(3, 6.0, ("query", "down"))))
    assert set(adapters) == {"layers"}
    assert set(adapters["layers"]["attention"]) == {"query"}
    assert adapters["layers"]["mlp"]["down"]["adapter"]["down"].shape == (2, 24, 3)
    assert adapters["layers"]["attention"]["query"]["adapter"]["up"].shape == (2, 3, 4, 4)


def test_a_tied_head_is_refused():
    tied = models.ModelConfig(64, 16, 2, 4, 2, 4, 24, tie_word_embeddings=True)
    graph, _ = models.abstract(tied)
    with pytest.raises(ValueError, match="'head' is tied to the embedding"):
        lora.adapted(graph, SETTINGS)


@pytest.mark.slow
def test_fresh_adapters_change_nothing_and_training_moves_them_alone(model):
    graph, base, adapted, _ = model
    adapters = lora.create(adapted, jax.random.key(1))
    np.testing.assert_array_equal(logits(adapted, lora.join(base, adapters)), logits(graph, base))
    before = jax.tree.map(np.array, base)
    optimizer = make_optimizer("adamw")
    params = jax.tree.map(jnp.copy, adapters)
    state = init_state(optimizer, params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 2 * sum(x.size for x in jax.tree.leaves(adapters)) + 8
    rows = {
        "tokens": jnp.asarray(TOKENS[:, :-1], jnp.int32),
        "targets": jnp.asarray(TOKENS[:, 1:], jnp.int32),
        "segment_ids": jnp.ones((2, 8), jnp.int32),
        "prompt_ids": jnp.ones((2, 8), jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(8), (2, 8)),
        "mask": jnp.ones((2, 8), bool),
    }
    losses = []
    for _ in range(20):
        params, state, metrics = sft_step(
            params, with_learning_rate(state, 3e-2), rows,
            graph=adapted, optimizer=optimizer, remat="none", compute_dtype="float32", micro_rows=1, base=base,
        )  # fmt: skip
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert jax.tree.structure(params) == jax.tree.structure(adapters)
    jax.tree.map(np.testing.assert_array_equal, before, base)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, params, adapters))
    assert float(moved) > 0.1


@pytest.mark.slow
def test_an_export_is_the_same_policy_in_peft(checkpoint, tmp_path):
    torch, their = needs.package("torch"), needs.package("peft")
    made = checkpoint("qwen2-untied-mha-linear")
    config, graph, base = hugging_face.load(made.folder, dtype=jnp.float32)
    settings = models.LoRA(3, 5.0, ALL)
    adapted = lora.adapted(graph, settings)
    adapters = random(lora.abstract(adapted), size=0.2)
    peft.save(tmp_path / "adapters", config, adapters, settings, str(made.folder))
    tokens = np.random.default_rng(1).integers(1, 97, (2, 12))
    theirs = their.PeftModel.from_pretrained(
        type(made.reference).from_pretrained(made.folder, attn_implementation="eager"), tmp_path / "adapters"
    )
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
        plain = made.reference(torch.tensor(tokens)).logits.numpy()
    assert np.abs(wanted - plain).max() > 0.1
    np.testing.assert_allclose(logits(adapted, lora.join(base, adapters), tokens), wanted, atol=5e-4)


def test_the_files_are_in_the_layout_that_peft_documents(model, tmp_path):
    adapters = random(model[3])
    peft.save(tmp_path / "out", SHAPE, adapters, SETTINGS, "base/model@v1")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["peft_type"], written["r"], written["lora_alpha"]) == ("LORA", 3, 6.0)
    assert (written["base_model_name_or_path"], written["revision"]) == ("base/model", "v1")
    assert set(written["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    }
    tensors = tensor_files.read_header(tmp_path / "out" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.self_attn.o_proj"
    assert tensors[f"{prefix}.lora_A.weight"].shape == (3, 16)
    assert tensors[f"{prefix}.lora_B.weight"].shape == (16, 3)
    up = np.asarray(adapters["layers"]["attention"]["output"]["adapter"]["up"])[1]
    np.testing.assert_array_equal(tensors[f"{prefix}.lora_B.weight"].map(), up.T)
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (64, 3)
    assert len(tensors) == 2 * (2 * 7 + 1)
