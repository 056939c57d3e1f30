"""Conversations as prompt tokens. A part that the prompt would lose is refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.serving.errors import ApiError, bad_request
from mlagent_jax.serving.schema import Message


def chat_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a conversation, rendered by the checkpoint's chat template.

    Without a template they are the ids of the messages' text, separated by blank lines, as such a policy was trained. A
    `developer` message becomes a `system` message if the template has no developer.

    Raises:
      ApiError: 400: the template refuses the conversation (the message quotes it), or omits a part of it.
    """
    if not tokenizer.has_chat_template:
        for place, message in enumerate(messages):
            if message.tool_calls:
                raise _left_out(place, "tool_calls", "without a chat template in the checkpoint they have no place")
        return tokenizer.encode("\n\n".join(message.text for message in messages))
    refused = None
    for renamed in (False, True):
        turns = [message.turn(renamed) for message in messages]
        if renamed and not any(message.role == "developer" for message in messages):
            break
        try:
            text = tokenizer.chat_text(turns)
        except Exception as error:  # A template is a program in the checkpoint: it may raise anything.
            refused = refused or bad_request(f"the checkpoint's chat template refuses this: {error}", "messages")
            continue
        missing = _missing(tokenizer, turns, text)
        if missing is None:
            return tokenizer.encode(text, parse_special=True)
        refused = _left_out(*missing, "the checkpoint's chat template leaves it out")
    raise refused


def _left_out(place: int, field: str, reason: str) -> ApiError:
    return bad_request(f"messages.{place}.{field}: {reason}", f"messages.{place}.{field}")


def _missing(tokenizer: Tokenizer, turns: Sequence[dict[str, Any]], text: str) -> tuple[int, str] | None:
    """Return (index, field) of the first part of a conversation that is not in its rendered text, or None."""
    for place, turn in enumerate(turns):
        said = turn["content"]
        if turn["role"] == "assistant":
            said = said.rpartition("</think>")[2]  # Templates omit the thoughts of earlier turns.
        parts = [("content", said), ("name", turn.get("name", ""))]
        parts += [("tool_calls", call["function"]["name"]) for call in turn.get("tool_calls", ())]
        for field, part in parts:
            wanted = tokenizer.without_markup(part).strip()
            if wanted not in text and json.dumps(wanted, ensure_ascii=False)[1:-1] not in text:
                return place, field
    return None
