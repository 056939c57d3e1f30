import dataclasses

import pytest
from transformers import AutoConfig

from mlagent_jax.models import ModelConfig, RopeScaling

QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}


def test_the_published_7b_is_read_as_it_is():
    config = ModelConfig.from_hf(QWEN)
    assert (config.head_dim, config.num_kv_heads, config.attention_bias, config.qk_norm) == (128, 4, True, False)
    assert (config.rope_theta, config.rope_scaling, config.dtype) == (1e6, RopeScaling(), "bfloat16")
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"model_type": "gpt2"}, "gpt2"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "high_freq_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_key_value_heads": 5}, "num_kv_heads=5"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"head_dim": 33}, "head_dim=33"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        ModelConfig.from_hf({**QWEN, **change})


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(),
        RopeScaling("linear", factor=2.0, original_max_position_embeddings=128),
        RopeScaling("llama3", factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.5),
        RopeScaling("yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=16.0, attention_factor=1.2),
    ],
    ids=lambda scaling: scaling.kind,
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_to_hf_and_back(model_type, scaling):
    config = ModelConfig(
        *(97, 32, 2, 4, 2, 16, 48),
        model_type=model_type,
        rope_theta=5e5,
        rope_scaling=scaling,
        attention_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
        max_position_embeddings=128,
        dtype="float32",
    )
    raw = config.to_hf()
    assert ModelConfig.from_hf(raw) == config
    theirs = AutoConfig.for_model(**raw).to_dict()
    assert ModelConfig.from_hf(theirs) == config, "as transformers writes it"


def test_a_combination_that_no_architecture_has_is_not_exported():
    config = ModelConfig(97, 32, 2, 4, 2, 8, 48, model_type="qwen2", attention_bias=False)
    with pytest.raises(ValueError, match="attention_bias"):
        config.to_hf()


OPTIONAL = {
    "num_key_value_heads": lambda config: config.num_kv_heads,
    "rms_norm_eps": lambda config: config.rms_norm_eps,
    "rope_parameters": lambda config: {"rope_theta": config.rope_theta, "rope_type": config.rope_scaling.kind},
    "tie_word_embeddings": lambda config: config.tie_word_embeddings,
    "max_position_embeddings": lambda config: config.max_position_embeddings,
    "initializer_range": lambda config: config.initializer_range,
}
"""Fields that a config.json may leave out, and where ours are."""


@pytest.mark.parametrize("field", OPTIONAL)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_field_that_is_left_out_is_what_transformers_takes(model_type, field):
    raw = AutoConfig.for_model(model_type, num_attention_heads=32, hidden_size=2048).to_dict()
    for name in (field, "rope_theta", "rope_scaling"):
        raw.pop(name, None)
    theirs = type(AutoConfig.for_model(model_type)).from_dict(raw)
    assert OPTIONAL[field](ModelConfig.from_hf(raw)) == getattr(theirs, field)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_head_size_that_is_left_out_is_what_transformers_takes(model_type):
    raw = AutoConfig.for_model(model_type, num_attention_heads=32, hidden_size=2048).to_dict()
    raw.pop("head_dim", None)
    theirs = getattr(type(AutoConfig.for_model(model_type)).from_dict(raw), "head_dim", None) or 2048 // 32
    assert ModelConfig.from_hf(raw).head_dim == theirs
