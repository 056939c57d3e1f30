"""What a client may ask: the fields of OpenAI's completions and chat completions that this server honours.

A field whose value would change the answer in a way that is not implemented is refused by name; fields that change
nothing here (`user`, `metadata`, ...) are accepted.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from mlagent_jax.sampling.config import MOST_TOP_K, Distribution
from mlagent_jax.serving.errors import bad_request

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
}
"""Fields of OpenAI's that are not implemented, with the values that ask for nothing."""
IGNORED = {"metadata", "prompt_cache_key", "reasoning_effort", "safety_identifier", "service_tier", "store", "user"}
"""Fields that do not change what is sampled."""


class StreamOptions(pydantic.BaseModel):
    """How an answer is streamed."""

    include_usage: bool = False


class Asked(pydantic.BaseModel):
    """What both kinds of requests have."""

    model_config = pydantic.ConfigDict(extra="forbid")

    model: str = ""
    n: Annotated[int, Field(ge=1, le=1024)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=100)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=0, le=MOST_TOP_K)] | None = 0
    min_p: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Of a request's JSON.

        Raises:
          ApiError: What is wrong, with the field's name.
        """
        try:
            fields = pydantic.TypeAdapter(dict[str, Any]).validate_json(body)
            for name, neutral in NEUTRAL.items():
                if fields.pop(name, None) not in neutral:
                    raise bad_request(f"{name} is not supported: leave it out", name)
            return cls.model_validate({name: value for name, value in fields.items() if name not in IGNORED})
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or None
            raise bad_request(f"{place or 'body'}: {first['msg']}", place) from error

    @property
    def samples(self) -> int:
        """Of each prompt."""
        return self.n or 1

    @property
    def distribution(self) -> Distribution:
        """What to draw from; null stands for the default."""
        return Distribution(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings.

        Raises:
          ApiError: One is empty.
        """
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not all(strings):
            raise bad_request("stop has an empty string, which would end every completion before it starts", "stop")
        if sum(map(len, strings)) > 4096:
            raise bad_request("stop has more than 4096 characters in all", "stop")
        return tuple(dict.fromkeys(strings))

    @property
    def adds_special(self) -> bool:
        """Whether the tokenizer's own special tokens are put around a text; a chat template has them already."""
        return False

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Asked):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    """0 or 1: of the tokens drawn. Alternatives are not kept."""
    add_special_tokens: bool = True
    """Whether a text begins as the checkpoint's tokenizer begins every text (with a beginning token, say)."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        single = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        return [self.prompt] if single else self.prompt

    @property
    def adds_special(self) -> bool:
        return self.add_special_tokens

    @property
    def limit(self) -> int | None:
        """Tokens of each completion; OpenAI's default."""
        return self.max_tokens or 16

    @property
    def wants_log_probs(self) -> bool:
        return self.logprobs is not None


class Function(pydantic.BaseModel):
    """What a tool call calls."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class ToolCall(pydantic.BaseModel):
    """A call that the assistant made in an earlier turn."""

    model_config = pydantic.ConfigDict(extra="ignore")

    id: str = ""
    type: Literal["function"] = "function"
    function: Function


class TextPart(pydantic.BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(pydantic.BaseModel):
    """One turn."""

    model_config = pydantic.ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """Thoughts before the content; templates leave them out where a later turn follows."""
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    refusal: None = None
    """As OpenAI's own answers have them, empty."""

    @property
    def text(self) -> str:
        """Its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def letters(self) -> int:
        """Characters of all that may come into the prompt."""
        calls = (len(call.function.name) + len(call.function.arguments) for call in self.tool_calls or ())
        return len(self.text) + len(self.name or "") + len(self.reasoning_content or "") + sum(calls)

    def turn(self, developer_is_system: bool = False) -> dict[str, Any]:
        """The message as chat templates take it: fields that it lacks left out, arguments of calls as objects."""
        role = "system" if developer_is_system and self.role == "developer" else self.role
        turn: dict[str, Any] = {"role": role, "content": self.text}
        for field in ("name", "tool_call_id", "reasoning_content"):
            if getattr(self, field):
                turn[field] = getattr(self, field)
        if self.tool_calls:
            turn["tool_calls"] = [
                {**call.model_dump(), "function": {"name": call.function.name, "arguments": _parsed(call.function)}}
                for call in self.tool_calls
            ]
        return turn


class ChatRequest(Asked):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False

    @property
    def limit(self) -> int | None:
        """Tokens of each completion; None: as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_log_probs(self) -> bool:
        return bool(self.logprobs)


def _parsed(function: Function) -> Any:
    """The arguments of a call, which are JSON; as they stand where they are none."""
    try:
        return json.loads(function.arguments)
    except ValueError:
        return function.arguments
