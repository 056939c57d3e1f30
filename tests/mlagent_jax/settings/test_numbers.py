"""Every number of a config has a range, and a value outside of it is refused before any work."""

import math

import pytest

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.numbers import ANY, AXIS, RANGES, numbers
from mlagent_jax.settings.schema import Config, default_config, differences, freeze


def changed(path, value):
    config = default_config()
    with config.ignore_type():
        config.update_from_flattened_dict({path: value})
    return config


def just_outside(path):
    """Values that the range of a number leaves out."""
    allowed, whole = RANGES[path], isinstance(dict(numbers(Config()))[path], int)
    step = 1 if whole else 1e-6
    outside = [] if whole else [math.nan, math.inf, -math.inf]
    if allowed is AXIS:
        outside += [0, -2]
    elif allowed is not ANY:
        outside.append(allowed.low if allowed.open_low and not whole else allowed.low - step)
        if math.isfinite(allowed.high):
            outside.append(allowed.high if allowed.open_high else allowed.high * (1 + step) + step)
    return [int(value) if whole else value for value in outside]


def test_every_number_has_a_range_and_its_default_is_within():
    assert dict(numbers(Config())).keys() == RANGES.keys()


@pytest.mark.parametrize(("path", "value"), [(path, value) for path in RANGES for value in just_outside(path)])
def test_a_number_outside_its_range_is_refused_by_name(path, value):
    with pytest.raises(ConfigError, match=rf"config\.{path.replace('.', '[.]')} is "):
        freeze(changed(path, value))


def test_a_setting_without_which_a_run_would_lose_all_or_learn_nothing_says_so():
    with pytest.raises(ConfigError, match="above 0: without a checkpoint an interrupted run starts again"):
        freeze(changed("rl.checkpoint_every", 0))
    with pytest.raises(ConfigError, match="above 0: a prompt without the last step's result"):
        freeze(changed("prompt.history_steps", 0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rl.estimator": "grpo", "rl.samples": 1}, r"samples is 1 and estimator 'grpo'.*would all be 0"),
        ({"policy.hidden_size": 100}, "multiple of twice config.policy.num_heads, 12"),
        ({"policy.num_kv_heads": 4}, "must divide config.policy.num_heads, 6"),
        ({"policy.matmul_precision": "exact"}, "choose one of auto, default"),
        ({"policy.attention": "flash"}, "choose one of auto, xla"),
        (
            {"policy.param_dtype": "bfloat16", "stages": ("rl",), "policy.checkpoint": "x"},
            r"rl\.learning_rate is 1e-06 and config\.policy\.param_dtype 'bfloat16'.*rounding to 'stochastic'",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    config = default_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        freeze(config)


@pytest.mark.parametrize(
    "fields",
    [{"optimizer.rounding": "stochastic"}, {"lora.rank": 4}, {"rl.learning_rate": 1e-3}, {"stages": ("evaluate",)}],
)
def test_bfloat16_parameters_that_updates_change_are_fine(fields):
    config = default_config()
    config.update_from_flattened_dict(
        {"policy.param_dtype": "bfloat16", "stages": ("rl",), "policy.checkpoint": "x"} | fields
    )
    freeze(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [("policy.remat", "full"), ("policy.attention", "xla"), ("sft.micro_batch", 4), ("rl.micro_tokens", 4096)],
)
def test_what_decides_only_where_and_how_fast_may_change_in_the_middle_of_a_run(path, value):
    assert differences(default_config().to_dict(), freeze(changed(path, value))) == []
