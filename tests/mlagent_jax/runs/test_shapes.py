"""Sizes of a config beside the mesh and the model: refused before any work."""

import json

import pytest

from mlagent_jax.parallelism import DEFAULT_RULES
from mlagent_jax.parallelism.mesh import abstract_mesh
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runs.shapes import check_shapes
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import default_config, freeze

EIGHT = {"data": 1, "fsdp": 4, "tensor": 2}


def check(mesh, devices=8, **fields):
    config = default_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    check_shapes(freeze(config), Devices(abstract_mesh(mesh, devices), DEFAULT_RULES))


def test_the_defaults_go_with_one_device_and_with_eight():
    check({"data": 1}, 1)
    check(EIGHT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sft__batch_size": 6}, "config.sft: an optimizer step has 6 rows, and the mesh cuts rows into 4 parts"),
        ({"sft__micro_batch": 2}, "config.sft: a pass .micro_batch. has 2 rows.*a multiple of 4"),
        ({"sampling__slots": 30}, "config.sampling.slots is 30; .* into 4 parts"),
        ({"sampling__rules": "slots"}, "config.sampling.rules: "),
        ({"prompt__max_prompt_tokens": 4090, "sft__row_tokens": 5000}, "4090 and 96; the policy knows 4096 positions"),
        ({"policy__num_heads": 3, "policy__num_kv_heads": 3}, "config.mesh or config.policy: .*not divisible"),
        (
            {"policy__attention": "cudnn", "sft__packing": False},
            "config.mesh or config.policy: attention kernel 'cudnn' runs on 'gpu'",
        ),
        ({"policy__attention": "cudnn"}, "cudnn.* set config.sft.packing=False, or config.policy.attention=xla"),
    ],
)
def test_a_size_that_mesh_or_model_does_not_take_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        check(EIGHT, **fields)


def test_what_no_stage_of_the_config_reads_is_not_checked():
    check(EIGHT, stages=("evaluate",), sft__batch_size=6)
    check(EIGHT, stages=("sft",), sampling__slots=30)


def test_positions_are_those_of_the_checkpoint_and_of_its_scaling(tmp_path):
    shape = {
        "model_type": "qwen2",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
    }
    asked = {"policy__checkpoint": str(tmp_path), "prompt__max_prompt_tokens": 500, "sft__row_tokens": 1024}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with pytest.raises(ConfigError, match="the policy knows 256 positions"):
        check({"data": 1}, 1, **asked)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"rope_scaling": scaling}))
    check({"data": 1}, 1, **asked)
