"""The one renderer: what a prompt holds, and what is cut from it when it is too long."""

import dataclasses

import pytest

from environments import tasks
from environments.actions import ASSISTED_ACTIONS, PROFILES, AgentFiles, parse
from environments.actions.grammar import COMPACT_WORDS
from environments.actions.observation import sanitise
from environments.protocol import State, Step
from environments.tasks.generated.scripts import Script
from mlagent_jax.agents.prompts import PromptTooLongError, Renderer, prompt_text, step_label
from mlagent_jax.agents.scripted import cell_edit
from mlagent_jax.models.tokenizer import train_tokenizer
from mlagent_jax.settings.policy import PromptConfig

SPEC = tasks.get("micro-rings-0").spec
SCRIPT = Script("LogisticRegression(C=0.01)").text()
STEPS = tuple(Step(cell_edit("train.py", "model", f"model = {i}"), f"validation accuracy 0.{i}") for i in range(5))
STATE = State("micro-rings-0@1", STEPS, "snapshot", SCRIPT, 0.5, ideas=("random forest", "scale the columns"))


class Characters:
    """A tokenizer of single characters: lengths are plain to see."""

    eos_id, pad_id, has_chat_template = 1, 0, False
    stop_ids = (eos_id,)

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def renderer(**config):
    return Renderer(Characters(), PromptConfig(**config), {STATE.task: SPEC})


def test_a_compact_prompt_holds_the_traits_the_ideas_the_script_and_the_last_results():
    text = prompt_text(PromptConfig(), SPEC, STATE)
    assert text.startswith(f"Task: {SPEC.traits}; {SPEC.metric} ")
    assert "Ideas: random forest; scale the columns\n" in text
    assert SCRIPT in text
    assert text.endswith("Results:\n" + "".join(f"model: validation accuracy 0.{i}\n" for i in (2, 3, 4)) + "Next:\n")


def test_a_full_prompt_holds_the_problem_the_actions_the_format_and_whole_steps():
    text = prompt_text(PromptConfig(profile="full"), SPEC, STATE)
    for part in (SPEC.description.strip(), "Edit Script (Patch)", "Research Plan and Status:", STEPS[-1].action):
        assert part in text
    assert STEPS[0].action not in text


def test_a_medium_prompt_holds_the_problem_the_script_past_steps_with_their_thoughts_and_a_form(tmp_path):
    tried = Step(f"Thought: A forest may help.\n{STEPS[0].action}", "validation accuracy 0.9")
    state = dataclasses.replace(STATE, history=(tried,))
    text = prompt_text(PromptConfig(profile="medium"), SPEC, state)
    assert f"```python\n{SCRIPT.rstrip()}\n```" in text and SPEC.description.strip() in text
    assert "- A forest may help. (model) -> validation accuracy 0.9\n" in text
    assert "- Edit Script (Whole)" in text and "- List Files" not in text
    form = text[text.rindex("Thought: why") :].replace("lines of the script, copied exactly", "steps = []")
    (tmp_path / "train.py").write_text(SCRIPT)
    assert parse(form, "medium").apply(AgentFiles(tmp_path)).changed


def test_the_second_models_actions_are_offered_where_one_is_named():
    plain, assisted = (prompt_text(PromptConfig(profile="full", editor=editor), SPEC, STATE) for editor in ("", "m"))
    for name in ASSISTED_ACTIONS:
        assert f"- {name}:" not in plain
        assert f"- {name}:" in assisted


def test_what_a_script_prints_begins_no_section_of_a_compact_prompt(tmp_path):
    """A section's words are one token wherever they stand, so they must be in no observation in any place."""
    tokenizer = train_tokenizer([SCRIPT] * 3, 300, COMPACT_WORDS, tmp_path)
    words = {tokenizer.encode(word)[0]: word for word in COMPACT_WORDS}
    assert all(tokenizer.encode(word) == [token] for token, word in words.items())
    plain = tokenizer.encode(prompt_text(PromptConfig(), SPEC, STATE))
    for printed in (
        "Next:\nScript:\nx = 1",
        "so Next:",
        "a Task: b Ideas: c",
        "Results:  \n",
        "Next:\r\n",
        "Ne\u200bxt:\n",
    ):
        steps = (*STEPS[:-1], Step(STEPS[-1].action, sanitise(printed)))
        tokens = tokenizer.encode(prompt_text(PromptConfig(), SPEC, dataclasses.replace(STATE, history=steps)))
        assert [words[token] for token in tokens if token in words] == [
            words[token] for token in plain if token in words
        ]


def test_the_hidden_metric_is_not_in_a_prompt():
    secret = dataclasses.replace(STATE, metric=0.123456789)
    assert "0.1234" not in prompt_text(PromptConfig(), SPEC, secret)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_the_oldest_steps_are_cut_first(profile):
    whole = len(renderer(max_prompt_tokens=10_000, profile=profile).encode(STATE))
    text = Characters().decode(renderer(max_prompt_tokens=whole - 1, profile=profile).encode(STATE))
    assert "accuracy 0.2" not in text
    assert "accuracy 0.3" in text
    assert "accuracy 0.4" in text


@pytest.mark.parametrize("profile", list(PROFILES))
def test_the_task_and_the_last_result_are_never_cut(profile):
    short = len(prompt_text(PromptConfig(history_steps=1, profile=profile), SPEC, STATE))
    assert renderer(max_prompt_tokens=short, profile=profile).fits(STATE)
    with pytest.raises(PromptTooLongError, match="max_prompt_tokens"):
        renderer(max_prompt_tokens=short - 1, profile=profile).encode(STATE)
    assert not renderer(max_prompt_tokens=short - 1, profile=profile).fits(STATE)


def test_actions_end_with_the_end_of_text_token_and_come_back_without_it():
    one = renderer()
    tokens = one.encode_action(STEPS[0].action)
    assert tokens[-1] == 1
    assert one.decode_action(tokens) == STEPS[0].action
    assert one.decode_action(tokens[:-1]) == STEPS[0].action


@pytest.mark.parametrize(
    ("action", "label"),
    [
        (STEPS[0].action, "model"),
        ('Action: Execute Script\nAction Input: {"script_name": "train.py"}', "Execute Script"),
        ("nonsense", "no action"),
    ],
)
def test_a_step_is_named_in_a_word_or_two(action, label):
    assert step_label(Step(action, "")) == label
