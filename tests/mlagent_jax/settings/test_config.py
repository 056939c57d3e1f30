"""The settings: checked before any work is done, with messages that name the field and the remedy."""

import importlib
import os
from pathlib import Path

import pytest

from environments.registry import PLUGINS_VARIABLE
from environments.rewards import REWARDS
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import check_field, default_config, differences, freeze
from mlagent_jax.settings.stages import RLConfig

CONFIGS = sorted(path.stem for path in Path("configs").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_is_a_valid_config(name):
    freeze(importlib.import_module(f"configs.{name}").get_config())


def test_only_smoke_and_studies_inherit_the_quickstart():
    sources = {path: path.read_text() for path in Path("configs").rglob("*.py")}
    heirs = {str(path) for path, text in sources.items() if "import quickstart" in text}
    assert heirs == {"configs/smoke.py", "configs/studies/settings.py"}


@pytest.mark.parametrize("name", ["rl", "quickstart"])
def test_rl_trains_on_states_of_every_depth_at_which_an_evaluated_agent_acts(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.pool.max_depth == config.evaluate.steps - 1
    assert config.prompt.history_steps >= config.pool.max_depth


def test_an_unknown_field_names_the_nearest():
    config = default_config()
    with config.unlocked():
        config.rl.value_clipp = 0.1
    with pytest.raises(ConfigError, match=r"config\.rl\.value_clipp .*did you mean config\.rl\.value_clip\?"):
        freeze(config)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("sft", "epochs", 0, "above 0"),
        ("workers", "sandbox", "chroot", "docker"),
        ("sampling", "temperature", 0.0, "0 is for an evaluation without rl"),
        ("sampling", "temperature", float("nan"), "from 0 .greedy."),
        ("sampling", "top_k", 2**31, "from 0 .all."),
        ("sampling", "top_p", 0.0, "above 0"),
        ("rl", "minibatches", 7, "divide"),
        ("rl", "max_staleness", -1, "0 or above"),
        ("rl", "straggler_seconds", 5.0, "raise that to 2"),
        ("sft", "row_tokens", 100, "raise it"),
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


def test_a_field_given_without_its_section_names_the_section():
    config = default_config()
    with config.unlocked():
        config.learning_rate = 1e-4
    with pytest.raises(ConfigError, match=r"did you mean config\.sft\.learning_rate or config\.rl\.learning_rate\?"):
        freeze(config)


def test_only_settings_that_decide_what_is_learned_count_as_differences():
    config = default_config()
    stored = config.to_dict()
    config.workers.slots = 16
    config.stages = ("export",)
    assert differences(stored, freeze(config)) == []
    config.rl.value_clip = 0.3
    assert differences(stored, freeze(config)) == ["rl.value_clip: 0.2 -> 0.3"]


def test_a_field_that_is_younger_than_the_workdir_had_its_default_there():
    config = default_config()
    stored = config.to_dict()
    del stored["rl"]["corrections"], stored["lora"]
    assert differences(stored, freeze(config)) == []
    config.rl.corrections = "none"
    assert differences(stored, freeze(config)) == ["rl.corrections: 'truncate_tokens:limit=5' -> 'none'"]


@pytest.mark.parametrize("name", sorted(RLConfig.MOVED))
def test_a_field_that_became_a_parameter_names_its_new_place(name):
    config = default_config()
    with config.unlocked():
        config.rl[name] = 0.1
    with pytest.raises(ConfigError, match=rf"config\.rl\.{name} has moved: set config\.rl\.\w+=\w+"):
        freeze(config)
    with pytest.raises(ConfigError, match="has moved"):
        check_field(f"rl.{name}")


def test_every_new_place_of_a_field_is_one():
    for place in RLConfig.MOVED.values():
        field, _, choice = place.removeprefix("config.rl.").partition("=")
        config = default_config()
        config.rl[field] = 512 if choice == "VALUE" else choice.replace("VALUE", "0.5")
        freeze(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "gspoo"}, r"rl\.loss: policy loss is 'gspoo'; choose one of cispo.*Did you mean 'gspo'"),
        ({"loss": "gspo:dual=2"}, "has no parameter 'dual'; its parameters are low, high"),
        ({"corrections": "truncate_tokens+clip"}, r"rl\.corrections: off-policy correction is 'clip'; choose one of"),
        ({"kl_controller": "adaptive"}, "needs target"),
        ({"estimator": "grpo", "best_of": 2}, r"config\.rl\.best_of is 2 and estimator 'grpo'.*Use rloo"),
        ({"kl_in": "reward"}, r"config\.rl\.kl_estimator is 'k3' and kl_in 'reward'.*use k1"),
        ({"estimator": "opo", "critic": "separate"}, r"config\.rl\.critic is 'separate'"),
        ({"estimator": "rloo", "critic_warmup": 2}, "reads no critic"),
        ({"silent_groups": "resample"}, r"config\.rl\.silent_groups is 'resample'.*max_staleness=0"),
        ({"kl_controller": "adaptive:target=0.1", "kl_coefficient": 0.0}, "starts above 0"),
    ],
)
def test_algorithms_that_do_not_exist_or_go_together_are_refused(fields, message):
    config = default_config()
    for name, value in fields.items():
        config.rl[name] = value
    with pytest.raises(ConfigError, match=message):
        freeze(config)


def test_an_evaluation_without_rl_may_be_greedy():
    config = default_config()
    config.stages, config.sampling.temperature = ("evaluate",), 0.0
    assert freeze(config).sampling.temperature == 0
