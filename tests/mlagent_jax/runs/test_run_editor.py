"""The second model of a run: what its jobs require, and that this host's workers will have it."""

import dataclasses

import pytest

from environments.actions.second_model import Endpoint
from mlagent_jax.runs.inputs import check_editor, editor_required
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.policy import PromptConfig
from mlagent_jax.settings.schema import Config

NONE = Config()
WITH = dataclasses.replace(NONE, prompt=PromptConfig(profile="full", editor="m"))


@pytest.fixture
def say(monkeypatch):
    """Set the environment variables that name an endpoint, or none."""

    def say(url="", model=""):
        monkeypatch.setenv("MLAGENT_EDITOR_URL", url)
        monkeypatch.setenv("MLAGENT_EDITOR_MODEL", model)

    return say


def test_jobs_require_the_very_model_that_the_config_names():
    assert editor_required(NONE) == ()
    assert editor_required(WITH) == (Endpoint("http://anywhere/v1", "m").id,)


def test_workers_of_this_host_must_have_it(say):
    say("http://localhost:8000/v1", "m")
    check_editor(WITH)
    check_editor(NONE)
    say("http://localhost:8000/v1", "n")
    with pytest.raises(ConfigError, match=r"config\.prompt\.editor is 'm', and this host's workers would have n"):
        check_editor(WITH)
    say()
    check_editor(NONE)
    with pytest.raises(ConfigError, match="MLAGENT_EDITOR_URL"):
        check_editor(WITH)


def test_variables_that_cannot_be_used_are_said(say):
    say("localhost", "m")
    with pytest.raises(ConfigError, match="MLAGENT_EDITOR_URL"):
        check_editor(WITH)
