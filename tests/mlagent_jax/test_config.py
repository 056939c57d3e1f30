"""The settings: checked before any work is done, with messages that name the field and the remedy."""

import importlib
import os
from pathlib import Path

import pytest

from environments.registry import PLUGINS_VARIABLE
from environments.rewards import REWARDS
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import default_config, differences, freeze

CONFIGS = sorted(path.stem for path in Path("configs").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_is_a_valid_config(name):
    freeze(importlib.import_module(f"configs.{name}").get_config())


def test_an_unknown_field_names_the_nearest():
    config = default_config()
    with config.unlocked():
        config.rl.clipp = 0.1
    with pytest.raises(ConfigError, match=r"config\.rl\.clipp .*did you mean config\.rl\.clip\?"):
        freeze(config)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("sft", "epochs", 0, "above 0"),
        ("workers", "sandbox", "chroot", "docker"),
        ("rl", "minibatches", 7, "divide"),
        ("rl", "max_staleness", -1, "0 or above"),
        ("rl", "straggler_seconds", 5.0, "raise that to 2"),
        ("sft", "row_tokens", 100, "raise it"),
        ("rl", "estimator", "vtrace", "rloo"),
        ("rl", "reward", "improvment", "choose one of improvement"),
        ("rl", "reward", "improvement:neutral=2", "at most 1"),
        ("evaluate", "reward", "paper_v1:alpha=3", "has no parameters"),
        ("prompt", "max_prompt_tokens", 0, "above 0"),
        ("prompt", "editor", "gpt-5", "profile to full"),
        ("collect", "trajectories", 0, "above 0"),
        ("collect", "max_ideas", 0, "at least min_ideas"),
        ("evaluate", "samples", -1, "above 0"),
        ("pool", "refresh_fraction", 1.5, "from 0 to 1"),
        ("sft", "held_out_fraction", 1.0, "below 1"),
        ("sft", "patience", 3, "hold out a share"),
        ("filter", "outcomes", ("success",), "choose among .*scored"),
        ("filter", "outcomes", (), "is empty"),
    ],
)
def test_an_impossible_value_is_named_with_what_is_possible(section, field, value, message):
    config = default_config()
    config[section][field] = value
    with pytest.raises(ConfigError, match=rf"config\.{section}\.{field}:? .*{message}"):
        freeze(config)


def test_a_reward_of_a_plugin_can_be_chosen_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv(PLUGINS_VARIABLE, "")
    monkeypatch.setattr(REWARDS, "_functions", dict(REWARDS._functions))
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from environments.rewards import REWARDS\n@REWARDS.register\ndef mine(outcome, *, bonus: float = 1.0):\n"
        "    return bonus\n"
    )
    config = default_config()
    config.rl.reward = "mine:bonus=2"
    with pytest.raises(ConfigError, match=r"config\.rl\.reward: reward is 'mine'; choose one of"):
        freeze(config)
    config.plugins = (str(plugin),)
    assert freeze(config).rl.reward == "mine:bonus=2"
    assert os.environ[PLUGINS_VARIABLE] == str(plugin)
    config.plugins = (str(tmp_path / "absent.py"),)
    with pytest.raises(ConfigError, match=r"config\.plugins: plugin .*absent\.py: FileNotFoundError"):
        freeze(config)


def test_a_wrong_type_is_named():
    config = default_config()
    with config.ignore_type():
        config.rl.states = "twelve"
    with pytest.raises(ConfigError, match=r"config\.rl\.states is 'twelve' \(str\); it takes a int"):
        freeze(config)


def test_several_names_may_come_as_one_flag_value():
    config = default_config()
    config.tasks.train = ("wine,iris",)
    assert freeze(config).tasks.train == ("wine", "iris")


def test_only_settings_that_decide_what_is_learned_count_as_differences():
    config = default_config()
    stored = config.to_dict()
    config.workers.slots = 16
    config.stages = ("export",)
    assert differences(stored, freeze(config)) == []
    config.rl.clip = 0.3
    assert differences(stored, freeze(config)) == ["rl.clip: 0.2 -> 0.3"]


def test_a_field_that_is_younger_than_the_workdir_had_its_default_there():
    config = default_config()
    stored = config.to_dict()
    del stored["rl"]["dual_clip"], stored["lora"]
    assert differences(stored, freeze(config)) == []
    config.rl.dual_clip = 3.0
    assert differences(stored, freeze(config)) == ["rl.dual_clip: 0.0 -> 3.0"]
