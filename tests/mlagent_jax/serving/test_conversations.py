"""A conversation is in the prompt whole, or refused with the part that is not."""

import json
import shutil

import pytest

from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.serving.conversations import chat_tokens
from mlagent_jax.serving.errors import ApiError
from mlagent_jax.serving.schema import ChatRequest

END = "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
KNOWN = "{%- for m in messages %}{%- if m.role in ('system', 'user', 'assistant') %}"
KNOWN += "<{{ m.role }}>{{ m.content | trim }}"
KNOWN += "\n{%- endif %}{%- endfor %}" + END
CALLS = (
    "{%- for m in messages %}<{{ m.role }}>{{ m.content }}{%- for c in m.tool_calls %}"
    "[{{ c.function.name }} {{ c.function.arguments | tojson }}]{%- endfor %}\n{%- endfor %}" + END
)
STRICT = "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
STRICT += "{{- raise_exception('roles must take turns, user first') }}{%- endif %}<{{ m.role }}>{{ m.content }}\n"
STRICT += "{%- endfor %}" + END
USER = {"role": "user", "content": "hi"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "42"}


@pytest.fixture
def prompt(speaker, tmp_path):
    """The text of the prompt that a template makes of messages."""

    def make(template, *messages):
        shutil.copytree(speaker, tmp_path / "it", dirs_exist_ok=True)
        if template:
            (tmp_path / "it" / "chat_template.jinja").write_text(template)
        tokenizer = Tokenizer.load(tmp_path / "it")
        asked = ChatRequest.read(json.dumps({"messages": messages}).encode())
        return tokenizer.decode(chat_tokens(tokenizer, asked.messages))

    return make


def test_a_developer_is_the_system_of_a_template_that_knows_none(prompt):
    said = prompt(KNOWN, {"role": "developer", "content": "Be brief."}, USER)
    assert said == prompt(KNOWN, {"role": "system", "content": "Be brief."}, USER) and "Be brief." in said
    assert "<developer>Be brief." in prompt(CALLS, {"role": "developer", "content": "Be brief."}, USER)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ((USER, CALL, RESULT), "messages.1.tool_calls"),
        ((USER, RESULT), "messages.1.content"),
        (({**USER, "name": "ann"},), "messages.0.name"),
    ],
    ids=str,
)
def test_what_the_template_leaves_out_is_named(prompt, messages, field):
    with pytest.raises(ApiError, match="leaves it out") as raised:
        prompt(KNOWN, *messages)
    assert (raised.value.status, raised.value.param) == (400, field)


def test_calls_and_results_are_rendered_where_the_template_has_them(prompt):
    said = prompt(CALLS, USER, CALL, RESULT)
    assert '[add {"a": 1}]' in said and "<tool>42" in said


def test_a_conversation_that_the_template_refuses_is_refused_with_its_words(prompt):
    with pytest.raises(ApiError, match="roles must take turns, user first") as raised:
        prompt(STRICT, {"role": "system", "content": "x"}, USER)
    assert raised.value.status == 400


def test_thoughts_of_earlier_turns_may_be_left_out(prompt):
    template = KNOWN.replace("m.content", "m.content.split('</think>')[-1]")
    said = prompt(template, USER, {"role": "assistant", "content": "<think>hm</think>\n\nyes"}, USER)
    assert "hm" not in said and "<assistant>yes" in said


def test_without_a_template_calls_have_no_place(prompt):
    with pytest.raises(ApiError, match="tool_calls") as raised:
        prompt("", USER, CALL)
    assert raised.value.status == 400


@pytest.mark.parametrize("field", [{"audio": {"id": "a"}}, {"function_call": {"name": "f"}}, {"weight": 0}], ids=str)
def test_a_field_that_is_not_honoured_is_refused_by_name(field):
    with pytest.raises(ApiError, match=next(iter(field))):
        ChatRequest.read(json.dumps({"messages": [{**USER, **field}]}).encode())
    ChatRequest.read(json.dumps({"messages": [{**USER, "refusal": None, "annotations": [], "audio": None}]}).encode())
