"""The second language model, behind `Edit Script (AI)` and `Understand File`: any OpenAI-compatible endpoint.

It is a part of the transition function, and treated as such:

- pinned: model, sampling and prompts make the id (`Endpoint.id`), which is in the key of every execution after it;
- cached: the same request keeps its first answer, for all processes of this host (`editor.sqlite`);
- logged: one line of JSON per request, with its tokens and seconds (`editor.jsonl`), and never the key.

An endpoint that does not answer is our failure (`EditorError`), never the policy's. Its answers are untrusted text.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments.actions.assisted import PROMPT_VERSION
from environments.actions.openai_http import MAX_PAUSE_SECONDS, Address, EndpointError, PassingError, completion, post
from environments.files.text_cache import TextCache
from environments.protocol import canonical_json, digest
from environments.sandbox.base import SandboxError

URL_VARIABLE, MODEL_VARIABLE, KEY_VARIABLE = "MLAGENT_EDITOR_URL", "MLAGENT_EDITOR_MODEL", "MLAGENT_EDITOR_KEY"
MAX_TOKENS = 8192


class EditorError(SandboxError):
    """The endpoint did not answer: our failure, like a sandbox's."""


def editor_id(model: str, seed: int = 0, max_tokens: int = MAX_TOKENS) -> str:
    """Return the id of the second model called `model`, as `configured_endpoint` pins it, on any server."""
    pinned = digest([PROMPT_VERSION, model, 0, seed, max_tokens])
    return f"editor:{model}:{pinned[:12]}"


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Address, model and sampling of the second model."""

    url: str
    """Base URL, for example `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    model: str
    key: str = dataclasses.field(default="", repr=False)
    """Key sent as bearer token; empty if the endpoint needs none."""
    seed: int = 0
    max_tokens: int = MAX_TOKENS
    """Maximum tokens per answer."""
    timeout_seconds: float = 120.0
    """Time limit of one attempt."""
    attempts: int = 5
    backoff_seconds: float = 1.0
    """Pause after the first failed attempt; it doubles with each attempt."""

    def __post_init__(self) -> None:
        _ = self.address
        if not self.model:
            raise ValueError(f"{MODEL_VARIABLE} is missing: {URL_VARIABLE} needs the name of a model to ask for")

    @property
    def address(self) -> Address:
        return Address(self.url, self.key, URL_VARIABLE, KEY_VARIABLE)

    @property
    def id(self) -> str:
        """Identity of the pinned settings: two endpoints with one id are the same transition function."""
        return editor_id(self.model, self.seed, self.max_tokens)

    def request(self, prompt: str) -> dict[str, Any]:
        """Return the body of the request for `prompt`."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }


def configured_endpoint(variables: Mapping[str, str] = os.environ, url: str = "", model: str = "") -> Endpoint | None:
    """Return the endpoint that `url` and `model`, or else the environment variables, name; None if they name none.

    Raises:
      ValueError: a value is invalid; the message does not hold the key.
    """
    url = url or variables.get(URL_VARIABLE, "").strip()
    if not url:
        return None
    return Endpoint(url, model or variables.get(MODEL_VARIABLE, "").strip(), variables.get(KEY_VARIABLE, "").strip())


class Editor:
    """Client of the endpoint, with a cache. Thread-safe."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        """Open cache and log in `folder`.

        Raises:
          OSError: they cannot be created.
        """
        self.endpoint = endpoint
        self.id = endpoint.id
        self._answers = TextCache(folder / "editor.sqlite", "answers")
        self._log = os.open(folder / "editor.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def ask(self, prompt: str) -> str:
        """Return the model's answer.

        Raises:
          EditorError: all attempts failed.
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
                answer = post(self.endpoint.address, "chat/completions", request, self.endpoint.timeout_seconds)
                reply = completion(answer)
                break
            except EndpointError as error:
                reason = str(error)
                seconds = round(time.monotonic() - started, 3)
                self._note({**facts, "cached": False, "attempt": attempt, "seconds": seconds, "error": reason})
                if not isinstance(error, PassingError) or attempt >= self.endpoint.attempts:
                    raise EditorError(f"the editor {self.endpoint.url}: {reason} (attempt {attempt})") from None
                pause = max(self.endpoint.backoff_seconds * 2 ** (attempt - 1), error.pause_seconds)
                time.sleep(min(pause, MAX_PAUSE_SECONDS))
        seconds = round(time.monotonic() - started, 3)
        self._note({**facts, "cached": False, "attempt": attempt, "seconds": seconds, **reply.tokens})
        kept = self._answers.put(key, canonical_json({"request": request, "answer": reply.text}))
        return json.loads(kept)["answer"]  # The first process to write wins.

    def close(self) -> None:
        self._answers.close()
        os.close(self._log)

    def _note(self, facts: dict[str, Any]) -> None:
        """Append a line in one write, so that lines of several processes do not mix."""
        os.write(self._log, (json.dumps(facts) + "\n").encode())
