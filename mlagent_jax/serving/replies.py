"""Answers in OpenAI's shapes, complete or in chunks. The two kinds of requests have different choices, and no more."""

from __future__ import annotations

import codecs
import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

from mlagent_jax.sampling.config import FinishReason


@dataclasses.dataclass
class Piece:
    """Text, tokens and log-probs of one choice: since the last chunk, or all of it."""

    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    """Number of characters of the completion before each token."""
    finish_reason: FinishReason | None = None

    def extend(self, other: Piece) -> None:
        """Append a later piece."""
        self.text += other.text
        self.token_ids += other.token_ids
        self.log_probs += other.log_probs
        self.offsets += other.offsets
        self.finish_reason = other.finish_reason


class Offsets:
    """Offsets of the tokens of one completion in its text. A token inside a character has the character's offset."""

    def __init__(self, spellings: Sequence[bytes]) -> None:
        self._spellings, self._letters = spellings, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> list[int]:
        """Return the number of characters before each of the next tokens."""
        offsets = []
        for token in token_ids:
            offsets.append(self._letters)
            spelled = self._spellings[token] if token < len(self._spellings) else b""
            self._letters += len(self._decoder.decode(spelled))
        return offsets


@dataclasses.dataclass(frozen=True)
class Style:
    """Format of the answers to one request.

    Attributes:
      model: Name of the policy.
      chat: Whether the request is a chat completion; else it is a completion.
      log_probs: Whether the answer has log-probs.
      spellings: Bytes of each token.
    """

    model: str
    chat: bool
    log_probs: bool
    spellings: Sequence[bytes]
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """Return the complete answer, for a request that does not stream."""
        choices = [self._choice(index, piece, "message") for index, piece in enumerate(pieces)]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def chunk(self, index: int, piece: Piece, counts_usage: bool = False) -> dict[str, Any]:
        """Return a chunk of choice `index`. If the stream ends with its usage, the chunk has a null usage."""
        usage = {"usage": None} if counts_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [self._choice(index, piece, "delta")], **usage}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a chat's choice, which has the role."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def closing(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the closing chunk, which has the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _head(self, chat_kind: str) -> dict[str, Any]:
        prefix, kind = ("chatcmpl-", chat_kind) if self.chat else ("cmpl-", "text_completion")
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, piece: Piece, holder: str) -> dict[str, Any]:
        log_probs = self._log_probs(piece) if self.log_probs else None
        if self.chat:
            said: dict[str, Any] = {"content": piece.text}
            if holder == "message":
                said = {"role": "assistant", **said}
            text = {holder: said}
        else:
            text = {"text": piece.text}
        return {"index": index, **text, "logprobs": log_probs, "finish_reason": piece.finish_reason}

    def _log_probs(self, piece: Piece) -> dict[str, Any]:
        spelled = [self.spellings[token] if token < len(self.spellings) else b"" for token in piece.token_ids]
        tokens = [raw.decode(errors="replace") for raw in spelled]
        if self.chat:
            entries = zip(tokens, spelled, piece.log_probs, strict=True)
            return {
                "content": [
                    {"token": token, "bytes": list(raw), "logprob": log_prob, "top_logprobs": []}
                    for token, raw, log_prob in entries
                ]
            }
        return {"tokens": tokens, "token_logprobs": piece.log_probs, "top_logprobs": None, "text_offset": piece.offsets}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the numbers of prompt and completion tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
