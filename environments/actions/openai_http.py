"""One attempt at one request to an OpenAI-compatible endpoint, with the standard library alone.

The second model (`environments.actions.second_model`) and the trainer's client (`mlagent_jax.agents.endpoint`) share
it. Responses are untrusted: they may be endless, arrive byte by byte, redirect elsewhere, or not be JSON.
"""

from __future__ import annotations

import dataclasses
import email.message
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

MAX_ANSWER_BYTES = 4 << 20
MAX_PAUSE_SECONDS = 30.0
"""Maximum pause between two attempts, whatever the endpoint asks for."""
PASSING_STATUS = frozenset({408, 409, 425, 429, *range(500, 600)})


class EndpointError(Exception):
    """The endpoint gave no answer. Retrying is pointless unless it is a `PassingError`. Never holds the key."""


class PassingError(EndpointError):
    """A failure that may pass: retry after `pause_seconds`, if the endpoint gave it."""

    def __init__(self, reason: str, pause_seconds: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.pause_seconds, self.status = pause_seconds, status


@dataclasses.dataclass(frozen=True)
class Address:
    """Base URL and key of an endpoint.

    `url_name` and `key_name` are the user's names for them in messages: an environment variable, a setting.

    Raises:
      ValueError: URL or key is invalid; the message does not hold the key.
    """

    url: str
    """Base URL, for example `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    key: str = dataclasses.field(default="", repr=False)
    """Key sent as bearer token; empty if the endpoint needs none."""
    url_name: str = dataclasses.field(default="the URL", compare=False)
    key_name: str = dataclasses.field(default="the key", compare=False)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url_name} must be an address such as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"{self.url_name} is a plain address: a key goes into {self.key_name}")
        if not self.key.isascii() or not self.key.isprintable():
            raise ValueError(f"{self.key_name} holds characters that no key has")

    def without_key(self, text: str) -> str:
        """Remove the key from `text`: endpoints quote a key that they refuse."""
        return text.replace(self.key, "[key]") if self.key else text


def post(address: Address, path: str, body: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
    """Post `body` to `path` (for example `chat/completions`) and return the JSON object of the response.

    Raises:
      PassingError: another attempt may succeed.
      EndpointError: no attempt will succeed.
    """
    headers = {"Content-Type": "application/json"}
    if address.key:
        headers["Authorization"] = f"Bearer {address.key}"
    url = f"{address.url.rstrip('/')}/{path}"
    message = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - http or https
    deadline = time.monotonic() + timeout_seconds
    try:
        with _OPENER.open(message, timeout=timeout_seconds) as response:
            answer = _read(response, deadline)
    except urllib.error.HTTPError as error:
        with error:
            reason = address.without_key(f"status {error.code}: {_said(error)}")
        if error.code in PASSING_STATUS:
            raise PassingError(reason, _pause(error.headers), error.code) from None
        raise EndpointError(reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise PassingError(address.without_key(f"{type(error).__name__}: {error}")) from None
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise PassingError(f"no JSON: {type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise PassingError(f"no JSON object, but {type(value).__name__}")
    return value


@dataclasses.dataclass(frozen=True)
class Completion:
    """Content of a chat completion."""

    text: str
    finish_reason: str = ""
    """Reason for the end; `length` if the token limit cut the text."""
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    """`prompt_tokens` and `completion_tokens`, if the endpoint counts them."""


def completion(answer: dict[str, Any]) -> Completion:
    """Read a chat completion from the endpoint's response. Its text is empty if all tokens went into reasoning.

    Raises:
      PassingError: the response holds none.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if text is None and choice.get("finish_reason") == "length":
            text = ""  # A reasoning model thought until its limit. A retry would do the same and cost as much.
        if not isinstance(text, str):
            raise TypeError("content is no text")
        usage = answer.get("usage") or {}
        tokens = {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if type(usage.get(name)) is int}
        reason = choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as error:
        raise PassingError(f"no chat completion: {type(error).__name__}: {error}") from None
    # JSON can hold lone surrogates, which no file can.
    return Completion(text.encode(errors="replace").decode(), reason if isinstance(reason, str) else "", tokens)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Turns a redirect into the error of its status: following it would carry the key to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    body = bytearray()
    while chunk := response.read1(1 << 16):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise PassingError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise PassingError("the answer takes too long")
    return bytes(body)


def _said(error: urllib.error.HTTPError) -> str:
    """Return the start of an error's body, in one line."""
    try:
        return " ".join(error.read(2000).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        return ""


def _pause(headers: email.message.Message) -> float:
    """Return the seconds that `Retry-After` asks for; 0 if it is missing or a date."""
    pause = headers.get("Retry-After", "").strip()
    return float(pause) if pause.isascii() and pause.isdecimal() else 0.0
