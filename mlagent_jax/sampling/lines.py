"""Input and output of `python -m mlagent_jax.sample`: files of prompts, and lines of samples."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlagent_jax.sampling.sampler import Delta, Generation, Prompt, joined

Conversation = list[dict[str, Any]]
"""Messages, each with `role` and `content`."""


def read_prompts(path: str) -> list[Prompt]:
    """Return the prompts of a file in order; blank lines are skipped.

    Raises:
        ValueError: A line is not an object with a `prompt`; the message has file and line.
    """
    prompts: list[Prompt] = []
    for place, row in _rows(path):
        prompt = row.get("prompt") if isinstance(row, dict) else None
        ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        if not (isinstance(prompt, str) or ids):
            raise ValueError(f'{place} is not {{"prompt": TEXT}} or {{"prompt": [ID, ...]}}')
        prompts.append(prompt)
    return prompts


def read_conversations(path: str) -> list[Conversation]:
    """Return the conversations of a file in order; a prompt becomes a single user message.

    Raises:
        ValueError: A line is not an object with `messages` or a text `prompt`; the message has file and line.
    """
    conversations: list[Conversation] = []
    for place, row in _rows(path):
        found = row if isinstance(row, dict) else {}
        text = found.get("prompt")
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else found.get("messages")
        if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
            raise ValueError(
                f'{place} is not {{"messages": [{{"role": TEXT, "content": TEXT}}, ...]}} or {{"prompt": TEXT}}'
            )
        conversations.append(messages)
    return conversations


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _rows(path: str) -> Iterator[tuple[str, Any]]:
    """Yield the place (for error messages) and the JSON of each line that is not blank."""
    # Only newlines end a line: a JSON string may contain U+2028.
    for number, line in enumerate(io.StringIO(Path(path).read_text(encoding="utf-8-sig")), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        yield f"{path}, line {number}", row


def in_order(deltas: Iterable[Delta], n: int) -> Iterator[tuple[int, int, Generation]]:
    """Yield (prompt, sample, generation) in the order of the prompts, each as soon as all before it are complete."""
    parts: dict[int, list[Delta]] = {}
    following = 0
    for delta in deltas:
        parts.setdefault(delta.prompt * n + delta.sample, []).append(delta)
        while following in parts and parts[following][-1].finish_reason is not None:
            yield *divmod(following, n), joined(parts.pop(following))
            following += 1


def as_json(prompt: int, sample: int, generation: Generation) -> dict[str, Any]:
    """Return a line of the output."""
    fields = dataclasses.asdict(generation)
    log_probs = fields.pop("log_probs")
    return {"index": prompt, "sample": sample, **fields, "logprobs": log_probs}
