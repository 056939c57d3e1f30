"""Small random checkpoints in the Hugging Face format, made by transformers; a tiny policy; a bucket."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import buckets
import jax
import pytest
import tiny_policy
from etils import epath

from mlagent_jax import models
from mlagent_jax.models.tokenizer import train_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
MATRIX: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-untied-mha-linear": {
        "model_type": "qwen2",
        "num_key_value_heads": 4,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "qwen2-yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen3": {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
    "qwen3-bias-yarn": {"model_type": "qwen3", "head_dim": 16, "attention_bias": True, "rope_scaling": YARN},
    "llama-mqa": {"model_type": "llama", "num_key_value_heads": 1, "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama-bias-tied": {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True},
}
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder, and the model of transformers whose weights it holds (fp32, in evaluation mode)."""

    folder: Path
    reference: Any


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """By name of the matrix; every parameter is random, biases and norms included."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made: dict[str, Checkpoint] = {}

    def make(name: str) -> Checkpoint:
        if name not in made:
            fields = {**SHAPE, **MATRIX[name]}
            config = AutoConfig.for_model(fields.pop("model_type"), **fields)
            torch.manual_seed(len(made))
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
            with torch.no_grad():
                for path, weight in model.named_parameters():
                    weight.copy_(torch.randn_like(weight) * 0.3 + ("norm" in path))
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = Checkpoint(folder, model)
        return made[name]

    return make


@pytest.fixture(scope="session")
def policy() -> tuple[Any, Any]:
    """Graph and parameters, which are not to be donated."""
    return models.create(tiny_policy.SHAPE, jax.random.key(0))


@pytest.fixture(scope="module")
def bucket() -> Iterator[epath.Path]:
    """An empty bucket on this machine, to which `gs://` goes in this process and those that it starts."""
    with buckets.server() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield epath.Path(f"gs://{buckets.NAME}")


CORPUS = ["def f(x):\n    return x + 12\nObservation: the caf\u00e9 is open\n" * 3, "Action: List Files\n"]


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint: a Qwen2 of random weights, made by transformers, and a byte-level vocabulary beside it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("speaker")
    tokenizer = train_tokenizer(CORPUS, 300, ["Next:\n"], folder)
    fields = {**SHAPE, "vocab_size": 304, "max_position_embeddings": 192, "tie_word_embeddings": True}
    config = AutoConfig.for_model("qwen2", **fields, eos_token_id=tokenizer.eos_id)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + ("norm" in name))
    model.save_pretrained(folder)
    return folder
