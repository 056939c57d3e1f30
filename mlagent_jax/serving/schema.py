"""Requests: the fields of OpenAI's completions and chat completions that this server supports.

A field is refused by name if its value would change the answer in a way that is not implemented. Fields that change
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
"""OpenAI's fields that are not implemented, with their values that have no effect."""
IGNORED = {"metadata", "prompt_cache_key", "reasoning_effort", "safety_identifier", "service_tier", "store", "user"}
"""Fields that do not change the samples."""


class StreamOptions(pydantic.BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class SamplingRequest(pydantic.BaseModel):
    """Fields that both kinds of requests have."""

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
        """Read a request from its JSON.

        Raises:
          ApiError: A field is invalid; the message has its name.
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
        """Return the number of samples per prompt."""
        return self.n or 1

    @property
    def distribution(self) -> Distribution:
        """Return the sampling distribution; null means the default."""
        return Distribution(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop strings.

        Raises:
          ApiError: A string is empty, or all together are too long.
        """
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not all(strings):
            raise bad_request("stop has an empty string, which would end every completion before it starts", "stop")
        if sum(map(len, strings)) > 4096:
            raise bad_request("stop has more than 4096 characters in all", "stop")
        return tuple(dict.fromkeys(strings))

    @property
    def adds_special(self) -> bool:
        """Return whether to add the tokenizer's own special tokens to a text; a chat template includes them."""
        return False

    @property
    def counts_usage(self) -> bool:
        """Return whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    """0 or 1: log-probs of the sampled tokens. Alternatives are not kept."""
    add_special_tokens: bool = True
    """Whether to add the special tokens that the checkpoint's tokenizer adds to every text (a beginning token)."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """Return the prompts as a list."""
        single = isinstance(self.prompt, str) or (bool(self.prompt) and isinstance(self.prompt[0], int))
        return [self.prompt] if single else self.prompt

    @property
    def adds_special(self) -> bool:
        return self.add_special_tokens

    @property
    def limit(self) -> int | None:
        """Return the maximum tokens per completion; the default is OpenAI's."""
        return self.max_tokens or 16

    @property
    def wants_log_probs(self) -> bool:
        return self.logprobs is not None


class Function(pydantic.BaseModel):
    """Function of a tool call."""

    model_config = pydantic.ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class ToolCall(pydantic.BaseModel):
    """Tool call of the assistant in an earlier turn."""

    model_config = pydantic.ConfigDict(extra="ignore")

    id: str = ""
    type: Literal["function"] = "function"
    function: Function


class TextPart(pydantic.BaseModel):
    """Part of a message; only text is supported."""

    type: Literal["text"]
    text: str


class Message(pydantic.BaseModel):
    """One turn of a conversation."""

    model_config = pydantic.ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """Thoughts before the content; templates omit them if a later turn follows."""
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    refusal: None = None
    """Empty fields of OpenAI's own answers."""

    @property
    def text(self) -> str:
        """Return the joined text of the parts."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def letters(self) -> int:
        """Return the number of characters that may enter the prompt."""
        calls = (len(call.function.name) + len(call.function.arguments) for call in self.tool_calls or ())
        return len(self.text) + len(self.name or "") + len(self.reasoning_content or "") + sum(calls)

    def turn(self, developer_is_system: bool = False) -> dict[str, Any]:
        """Return the message for chat templates: without its empty fields, with arguments of calls as objects."""
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


class ChatRequest(SamplingRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False

    @property
    def limit(self) -> int | None:
        """Return the maximum tokens per completion; None: as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_log_probs(self) -> bool:
        return bool(self.logprobs)


def _parsed(function: Function) -> Any:
    """Return the arguments of a call, parsed as JSON if they are JSON."""
    try:
        return json.loads(function.arguments)
    except ValueError:
        return function.arguments
