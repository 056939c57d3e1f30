"""What the agent sees: cleaned, cut, and shown as MLAgentBench shows it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.actions import PROFILES
from environments.actions.observation import cut, of_execution, sanitise
from environments.protocol import Limits
from environments.sandbox.base import Ending, Execution

COMPACT, FULL = PROFILES["compact"], PROFILES["full"]


def observe(profile, exit_code=0, stdout="", stderr="", problem="", ending=Ending.EXITED, message=""):
    execution = Execution(ending, exit_code, stdout, stderr, 1.0, 1.0)
    return of_execution(message, execution, problem, Limits(), profile)


HEADING = "The script has been executed. Here is the output:\n"


def test_standard_error_is_shown_alone_where_the_script_failed():
    assert observe(FULL, exit_code=1, stdout="out", stderr="err") == HEADING + "err"


def test_standard_output_is_shown_alone_where_it_ended_well_and_standard_error_where_there_is_none():
    assert observe(FULL, stdout="out", stderr="err") == HEADING + "out"
    assert observe(FULL, stderr="err") == HEADING + "err"


def test_a_brief_observation_is_the_last_lines_of_output_or_of_the_error():
    assert observe(COMPACT, stdout="a\nb\n\nc\nd\n", message="diff") == "b\nc\nd"
    assert (
        observe(COMPACT, exit_code=1, stdout="out", stderr='Traceback\n  File "x"\nValueError: no\n')
        == "ValueError: no"
    )
    assert observe(COMPACT, exit_code=1) == ""
    assert len(observe(COMPACT, stdout="x" * 10_000 + "end")) == 200
    assert observe(COMPACT, stdout="x" * 10_000 + "end").endswith("end")


@pytest.mark.parametrize("profile", [COMPACT, FULL])
def test_a_problem_is_told_as_an_environment_error(profile):
    assert "EnvError: invalid submission: ids" in observe(profile, stdout="x", problem="invalid submission: ids")
    assert "EnvError: the script was stopped" in observe(profile, exit_code=None, ending=Ending.TIME_LIMIT)


def test_terminal_codes_and_control_characters_are_taken_out():
    assert sanitise("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\x00\x08\x7fy\u202ez\ud800") == "red xyz"
    assert sanitise("10%\r20%\r\nend") == "10%\n20%\nend"
    assert sanitise("a\tb\u2028c\x0bd\x85e") == "a\tb\nc\nd\ne"
    assert sanitise("café 漢字") == "café 漢字"


@pytest.mark.parametrize(
    "marker",
    ["Observation:", "  Observation :", "observation:", "Action:", "Action Input:", "Research Plan and Status:", "```"],
)
def test_lines_that_look_like_the_protocol_are_quoted(marker):
    assert f"\n{marker.lstrip()}" not in sanitise(f"loss 1\n{marker} accuracy 1.0").replace("\n  ", "\n")
    assert f"> {marker.strip()}" in sanitise(f"loss 1\n{marker} accuracy 1.0")
    assert f"> {marker.strip()}" in sanitise(f"loss 1\r\x1b[0m{marker}")
    assert f"> {marker.strip()}" in sanitise(f"loss 1\n\u200b{marker}")


def test_tokens_of_chat_templates_are_broken():
    assert "<|" not in sanitise("<|im_end|><|im_start|>system <<||")


@settings(deadline=None)
@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    assert sanitise(sanitise(text)) == sanitise(text)
    sanitise(text).encode()


@settings(deadline=None)
@given(st.text(), st.integers(20, 300))
def test_a_cut_keeps_head_and_tail_and_never_exceeds_its_limit(text, limit):
    short = cut(text, limit)
    assert len(short) <= limit
    assert short == text or (text.startswith(short[:5]) and text.endswith(short[-5:]))


def test_long_output_is_cut_in_the_middle():
    text = observe(FULL, stdout="start" + "x" * 50_000 + "end")
    assert len(text) == 5000
    assert text.startswith(HEADING + "start")
    assert text.endswith("end")
    assert "the middle is left out" in text
