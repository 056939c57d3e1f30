"""One attempt at one request to an OpenAI-compatible endpoint: the HTTP part that the second model
(`environments.actions.second_model`) and the trainer's client (`mlagent_jax.agents.endpoint`) share. The standard
library alone.

What an endpoint sends is untrusted: answers may be endless, come drop by drop, redirect elsewhere, or be no JSON.
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
"""Between two attempts, whatever the endpoint asks for."""
PASSING_STATUS = frozenset({408, 409, 425, 429, *range(500, 600)})


class EndpointError(Exception):
    """The endpoint gave no answer; asking again is pointless unless it is a `PassingError`. Never holds the key."""


class PassingError(EndpointError):
    """It may work the next time, after `pause_seconds` if the endpoint said so."""

    def __init__(self, reason: str, pause_seconds: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.pause_seconds, self.status = pause_seconds, status


@dataclasses.dataclass(frozen=True)
class Address:
    """Where an endpoint is, and the key that it takes.

    `url_name` and `key_name` are what the user calls them, for messages: an environment variable, a setting.

    Raises:
      ValueError: they cannot be used; the message does not hold the key.
    """

    url: str
    """Base URL, for example `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    key: str = dataclasses.field(default="", repr=False)
    """Sent as bearer token; empty where the endpoint needs none."""
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
        """Endpoints quote the key that they refuse."""
        return text.replace(self.key, "[key]") if self.key else text


def post(address: Address, path: str, body: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
    """The JSON object that the endpoint answers at `path`, for example `chat/completions`.

    Raises:
      PassingError: another attempt may succeed.
      EndpointError: none will.
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
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise PassingError(f"no JSON: {type(error).__name__}: {error}") from None
    if not isinstance(found, dict):
        raise PassingError(f"no JSON object, but {type(found).__name__}")
    return found


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a chat completion says."""

    text: str
    finish_reason: str = ""
    """`length` where it was cut at the token limit."""
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    """`prompt_tokens` and `completion_tokens`, where the endpoint counts them."""


def completion(answer: dict[str, Any]) -> Completion:
    """A chat completion in the endpoint's answer; its text is empty where all tokens went into reasoning.

    Raises:
      PassingError: it holds none.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        if text is None and choice.get("finish_reason") == "length":
            text = ""  # A reasoning model thought until its limit: it would again, and is paid for each time.
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
    """Makes a redirect, which would carry the key to another host, the error that its status is."""

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
    """The beginning of an error's body, in one line."""
    try:
        return " ".join(error.read(2000).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        return ""


def _pause(headers: email.message.Message) -> float:
    """Seconds that `Retry-After` asks for; 0 where it asks for none, or gives a date."""
    asked = headers.get("Retry-After", "").strip()
    return float(asked) if asked.isascii() and asked.isdecimal() else 0.0
