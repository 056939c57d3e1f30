"""The second language model, behind `Edit Script (AI)` and `Understand File`: any OpenAI-compatible endpoint.

It is a part of the transition function, and treated as one:

- pinned: model, sampling and prompts make the id (`Endpoint.id`) that is in the key of every execution it leads to;
- cached: the same request has the same answer from then on, for all processes of this host (`editor.sqlite`);
- logged: one line of JSON for every request, with its tokens and seconds (`editor.jsonl`), and never the key.

An endpoint that does not answer is our failure (`EditorError`), never the policy's. What it answers is untrusted text.
"""

from __future__ import annotations

import dataclasses
import email.message
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments.actions.assisted import PROMPT_VERSION
from environments.protocol import canonical_json, digest
from environments.sandbox.base import SandboxError
from environments.text_cache import TextCache

URL_VARIABLE, MODEL_VARIABLE, KEY_VARIABLE = "MLAGENT_EDITOR_URL", "MLAGENT_EDITOR_MODEL", "MLAGENT_EDITOR_KEY"
MAX_ANSWER_BYTES = 4 << 20
MAX_TOKENS = 8192
MAX_PAUSE_SECONDS = 30.0
"""Between two attempts, whatever the endpoint asks for."""
_PASSING_STATUS = frozenset({408, 429, *range(500, 600)})


class EditorError(SandboxError):
    """The endpoint did not answer: our failure, as that of a sandbox."""


class _PassingError(Exception):
    """It may work the next time, after `pause_seconds` if the endpoint said so."""

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


def editor_id(model: str, seed: int = 0, max_tokens: int = MAX_TOKENS) -> str:
    """Id of the second model called `model` as `configured_endpoint` pins it, wherever it is served."""
    pinned = digest([PROMPT_VERSION, model, 0, seed, max_tokens])
    return f"editor:{model}:{pinned[:12]}"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Which model to ask, and how."""

    url: str
    """Base URL, for example `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    model: str
    key: str = dataclasses.field(default="", repr=False)
    """Sent as bearer token; empty where the endpoint needs none."""
    seed: int = 0
    max_tokens: int = MAX_TOKENS
    """Of an answer."""
    timeout_seconds: float = 120.0
    """Of one attempt."""
    attempts: int = 5
    backoff_seconds: float = 1.0
    """Pause after the first failed attempt; it doubles with each."""

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{URL_VARIABLE} must be an address such as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"{URL_VARIABLE} is a plain address: a key goes into {KEY_VARIABLE}")
        if not self.model:
            raise ValueError(f"{MODEL_VARIABLE} is missing: {URL_VARIABLE} needs the name of a model to ask for")
        if not self.key.isascii() or not self.key.isprintable():
            raise ValueError(f"{KEY_VARIABLE} holds characters that no key has")

    @property
    def id(self) -> str:
        """Identity of what is pinned: two endpoints with one id are the same transition function."""
        return editor_id(self.model, self.seed, self.max_tokens)

    def request(self, prompt: str) -> dict[str, Any]:
        """Body of the request that asks `prompt`."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }


def configured_endpoint(variables: Mapping[str, str] = os.environ, url: str = "", model: str = "") -> Endpoint | None:
    """The endpoint that `url` and `model`, or else the environment variables, name; None where they name none.

    Raises:
      ValueError: what they say cannot be used; the message does not hold the key.
    """
    url = url or variables.get(URL_VARIABLE, "").strip()
    if not url:
        return None
    return Endpoint(url, model or variables.get(MODEL_VARIABLE, "").strip(), variables.get(KEY_VARIABLE, "").strip())


class Editor:
    """Asks an endpoint, through the cache. Thread-safe."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        """Open cache and log in `folder`.

        Raises:
          OSError: they cannot be created.
        """
        self.endpoint = endpoint
        self.id = endpoint.id
        self._answers = TextCache(folder / "editor.sqlite", "answers")
        self._log = os.open(folder / "editor.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # A redirect would carry the key to another host.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, prompt: str) -> str:
        """The model's answer.

        Raises:
          EditorError: there is none, after all attempts.
        """
        request = self.endpoint.request(prompt)
        key = digest([self.id, request])
        facts: dict[str, Any] = {"time": round(time.time(), 3), "editor": self.id, "request": key}
        known = self._answers.get(key)
        if known is not None:
            self._note({**facts, "cached": True})
            return json.loads(known)["answer"]
        started, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            try:
                answer, usage = self._send(request)
                break
            except (_PassingError, EditorError) as error:
                reason = self._without_key(str(error))
                seconds = round(time.monotonic() - started, 3)
                self._note({**facts, "cached": False, "attempt": attempt, "seconds": seconds, "error": reason})
                if isinstance(error, EditorError) or attempt >= self.endpoint.attempts:
                    raise EditorError(f"the editor {self.endpoint.url}: {reason} (attempt {attempt})") from None
                pause = max(self.endpoint.backoff_seconds * 2 ** (attempt - 1), error.pause_seconds)
                time.sleep(min(pause, MAX_PAUSE_SECONDS))
        seconds = round(time.monotonic() - started, 3)
        self._note({**facts, "cached": False, "attempt": attempt, "seconds": seconds, **usage})
        self._answers.put(key, canonical_json({"request": request, "answer": answer}))
        return json.loads(self._answers.get(key) or "")["answer"]  # That of whoever was first.

    def close(self) -> None:
        self._answers.close()
        os.close(self._log)

    def _send(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """One attempt: the answer, and the tokens it took.

        Raises:
          _PassingError: another attempt may succeed.
          EditorError: none will.
        """
        headers = {"Content-Type": "application/json"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
        message = urllib.request.Request(url, json.dumps(request).encode(), headers)  # noqa: S310 - http or https
        deadline = time.monotonic() + self.endpoint.timeout_seconds
        try:
            with self._opener.open(message, timeout=self.endpoint.timeout_seconds) as response:
                body = _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error)
            if error.code in _PASSING_STATUS:
                raise _PassingError(f"status {error.code}: {said}", _pause(error.headers)) from error
            raise EditorError(f"status {error.code}: {said}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error
        return _parse(body)

    def _without_key(self, text: str) -> str:
        """Endpoints quote the key that they refuse."""
        return text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text

    def _note(self, facts: dict[str, Any]) -> None:
        """Append a line; one write, so that lines of several processes do not mix."""
        os.write(self._log, (json.dumps(facts) + "\n").encode())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Makes a redirect the error that its status is."""

    def redirect_request(self, *_: object) -> None:
        return None


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Body of a response that may be endless, or come drop by drop."""
    body = bytearray()
    while chunk := response.read1(1 << 16):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise _PassingError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _PassingError("the answer takes too long")
    return bytes(body)


def _parse(body: bytes) -> tuple[str, dict[str, Any]]:
    """Text of a chat completion, and its numbers of tokens where it gives them."""
    try:
        completion = json.loads(body)
        answer = completion["choices"][0]["message"]["content"]
        if not isinstance(answer, str):
            raise TypeError("content is no text")
        usage = completion.get("usage") or {}
        tokens = {name: usage[name] for name in ("prompt_tokens", "completion_tokens") if type(usage.get(name)) is int}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _PassingError(f"no chat completion: {type(error).__name__}: {error}") from error
    # JSON can hold lone surrogates, which no file can.
    return answer.encode(errors="replace").decode(), tokens


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
