"""A language model behind an OpenAI-compatible endpoint, asked many times over: as expert, for ideas, in evaluation.

Asking again is free: answers are kept in `endpoint.sqlite` by all that made them (model, messages, sampling, seed), so
a collection that was interrupted takes the same steps again. Every request that was sent is a line of `endpoint.jsonl`
with its tokens and cost, never the key; what was spent before a restart counts against the budget. Requests of all
threads share the limits, and a refusal for too many of them (429) makes all wait. What comes back is untrusted text.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from environments.actions.openai_http import (
    MAX_PAUSE_SECONDS,
    Address,
    Completion,
    EndpointError,
    PassingError,
    completion,
    post,
)
from environments.files.text_cache import TextCache
from environments.protocol import canonical_json, digest
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import BudgetError, ConfigError
from mlagent_jax.settings.hosts import EndpointConfig

Messages = Sequence[Mapping[str, str]]
"""A conversation: `role` and `content` of each message."""
WINDOW_SECONDS = 60.0
WARNING_SECONDS = 30.0
"""Minimum time between two warnings about requests that fail."""
BYTES_A_TOKEN = 3
"""Low, so that a request is rather taken for longer than it is, before its endpoint has counted it."""
log = logging.getLogger(__name__)
CLOCK, SLEEP = time.monotonic, time.sleep


@dataclasses.dataclass(frozen=True)
class Spent:
    """What was asked for so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the config's prices."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


class EndpointClient:
    """Asks one model. Thread-safe.

    Args:
      config: which model, and how it may be asked.
      folder: local; where answers and the log of requests are kept.
      variables: environment variables, one of which may hold the key.

    Raises:
      ConfigError: the config names no endpoint, or its address or key cannot be used.
    """

    def __init__(self, config: EndpointConfig, folder: Path, variables: Mapping[str, str] = os.environ) -> None:
        if not config.url or not config.model:
            raise ConfigError("config.endpoint names no language model: set config.endpoint.url and .model")
        key = variables.get(config.key_variable, "").strip()
        try:
            self._address = Address(config.url, key, "config.endpoint.url", f"${config.key_variable}")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        self._answers = TextCache(folder / "endpoint.sqlite", "answers")
        log = folder / "endpoint.jsonl"
        self._budget = _Budget(config, _spent_before(log))
        self._pace = _Pace(config.requests_per_minute, config.tokens_per_minute)
        self._log = jsonl.Appender(log)
        self._log_lock = threading.Lock()
        self._stopped = threading.Event()
        self._next_warning = -math.inf

    @property
    def spent(self) -> Spent:
        """Since the log began."""
        return self._budget.spent

    def chat(self, messages: Messages, *, seed: int = 0) -> Completion:
        """The model's next message.

        Args:
          seed: tells answers to one conversation apart; sent where the config says so.

        Raises:
          BudgetError: the answer might go over the budget.
          EndpointError: there is no answer, after all attempts.
        """
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [dict(message) for message in messages],
            config.limit_field: config.max_tokens,
        }
        if config.send_temperature:
            body["temperature"] = config.temperature
        if config.send_top_p:
            body["top_p"] = config.top_p
        if config.send_seed:
            body["seed"] = seed
        found = self._ask("chat/completions", body, seed, lambda answer: dataclasses.asdict(completion(answer)))
        return Completion(found["text"], found["finish_reason"], found["tokens"])

    def embed(self, texts: Sequence[str], model: str) -> list[list[float]]:
        """A vector for each of `texts`, by an embedding model of the endpoint.

        Raises:
          BudgetError, EndpointError: as for `chat`.
        """
        vectors: list[list[float]] = []
        for start in range(0, len(texts), 64):
            part = list(texts[start : start + 64])
            answer = self._ask("embeddings", {"model": model, "input": part}, 0, lambda a: _vectors(a, len(part)))  # noqa: B023
            vectors += answer["vectors"]
        return vectors

    def chat_many(
        self,
        conversations: Sequence[Messages],
        seeds: Sequence[int],
        progress: Callable[[Completion | EndpointError], None] | None = None,
    ) -> list[Completion | EndpointError]:
        """The model's next message in each conversation, `concurrency` at a time; an error in place of an answer that
        could not be had. `progress` is called with each as it comes.

        Raises:
          BudgetError: as for `chat`; answers that were had by then are kept.
        """

        def one(messages: Messages, seed: int) -> Completion | EndpointError:
            try:
                return self.chat(messages, seed=seed)
            except EndpointError as error:
                return error

        threads = concurrent.futures.ThreadPoolExecutor(self.config.concurrency)
        waiting = [threads.submit(one, *each) for each in zip(conversations, seeds, strict=True)]
        try:
            for future in concurrent.futures.as_completed(waiting):
                answer = future.result()
                if progress is not None:
                    progress(answer)
        except Exception:
            threads.shutdown(cancel_futures=True)
            raise
        except BaseException:
            # A signal ends the wait at once: requests under way, and pauses between attempts, may take minutes.
            self._stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        threads.shutdown()
        return [future.result() for future in waiting]

    def close(self) -> None:
        self._answers.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, path: str, body: dict[str, Any], seed: int, read: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        """What `read` makes of the endpoint's answer, from the cache where it is there."""
        key = digest([path, body, seed])
        known = self._answers.get(key)
        if known is None:
            known = self._answers.put(key, canonical_json(self._send(path, body, key, read)))  # or that of a first one
        return json.loads(known)

    def _send(
        self, path: str, body: dict[str, Any], key: str, read: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        config = self.config
        # The most that it can take: what it may spend is set aside until it is known.
        prompt = math.ceil(len(json.dumps(body, ensure_ascii=False).encode(errors="replace")) / BYTES_A_TOKEN)
        most = self._budget.price(prompt, int(body.get(config.limit_field, 0)))
        attempt = 0
        while True:
            attempt += 1
            if self._stopped.is_set():
                raise EndpointError(f"{config.url}: stopped before attempt {attempt}")
            self._budget.reserve(most)
            spent = Spent()
            try:
                self._pace.wait(most.tokens)
                started = CLOCK()
                try:
                    answer = post(self._address, path, body, config.timeout_seconds)
                finally:
                    facts = {"time": round(time.time(), 3), "request": key, "attempt": attempt}
                    facts["seconds"] = round(CLOCK() - started, 3)
                # Whatever it is good for: an answer that cannot be read was made, and is paid for.
                spent = self._price_of(answer, prompt)
                found = read(answer)
                self._note(facts | _counts(spent))
                return found
            except EndpointError as error:
                self._note(facts | _counts(spent) | {"error": str(error)[:500]})
                passing = isinstance(error, PassingError)
                if not passing or attempt >= config.attempts:
                    raise EndpointError(f"{config.url}: {error} (attempt {attempt} of {config.attempts})") from None
                pause = max(config.backoff_seconds * 2 ** (attempt - 1), error.pause_seconds)
                pause = min(pause, MAX_PAUSE_SECONDS)
                self._warn(error, attempt)
                if error.status == 429:
                    self._pace.hold(pause)
                # Spread, so that threads that failed together do not come back together.
                SLEEP(pause * random.uniform(1.0, 1.25))  # noqa: S311 - not secret
            finally:
                self._budget.settle(most, spent)

    def _price_of(self, answer: Mapping[str, Any], prompt: int) -> Spent:
        usage = answer.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}
        counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        known = [value if type(value) is int and value >= 0 else None for value in counted]
        said = len(json.dumps(answer.get("choices", ""))) // BYTES_A_TOKEN
        # An embedding has no completion tokens, and its vectors are not text.
        made = 0 if "choices" not in answer else said
        return self._budget.price(
            prompt if known[0] is None else known[0], (made if known[1] is None else known[1]), sent=1
        )

    def _warn(self, error: EndpointError, attempt: int) -> None:
        """Tell that requests fail and are sent again, at most once in `WARNING_SECONDS`."""
        with self._log_lock:
            if CLOCK() < self._next_warning:
                return
            self._next_warning = CLOCK() + WARNING_SECONDS
        log.warning(
            "%s does not answer (%s); asking again, attempt %d of %d", self.config.url, error, attempt + 1,
            self.config.attempts,
        )  # fmt: skip

    def _note(self, facts: dict[str, Any]) -> None:
        with self._log_lock:
            self._log.append(facts)


class _Budget:
    """Tokens and money: what was spent, what requests under way may yet spend, and the limits."""

    def __init__(self, config: EndpointConfig, before: Spent) -> None:
        self._config, self._spent, self._reserved = config, before, Spent()
        self._changed = threading.Condition()

    @property
    def spent(self) -> Spent:
        with self._changed:
            return self._spent

    def price(self, prompt_tokens: int, completion_tokens: int, sent: int = 0) -> Spent:
        return Spent(sent, prompt_tokens, completion_tokens, self._config.cost(prompt_tokens, completion_tokens))

    def reserve(self, most: Spent) -> None:
        """Set `most` aside; waits where only requests under way stand against it."""
        with self._changed:
            while not self._fits(self._spent + self._reserved + most):
                if not self._fits(self._spent + most):
                    spent = self._spent
                    raise BudgetError(
                        f"{spent.requests} requests took {spent.tokens} tokens and {spent.cost:.4f} in money; the next "
                        f"may take {most.tokens} and {most.cost:.4f}. The limits are config.endpoint.budget_tokens, "
                        f"{self._config.budget_tokens}, and budget_cost, {self._config.budget_cost}: raise them to go "
                        "on where it stopped"
                    )
                self._changed.wait()
            self._reserved += most

    def settle(self, most: Spent, spent: Spent) -> None:
        """Give back what was set aside, and count what was spent."""
        less = Spent(-most.requests, -most.prompt_tokens, -most.completion_tokens, -most.cost)
        with self._changed:
            self._reserved += less
            self._spent += spent
            self._changed.notify_all()

    def _fits(self, total: Spent) -> bool:
        tokens, cost = self._config.budget_tokens, self._config.budget_cost
        return (not tokens or total.tokens <= tokens) and (not cost or total.cost <= cost + 1e-12)


class _Pace:
    """Requests and tokens in any minute; 0: no limit. Tokens are those that a request may take at most."""

    def __init__(self, requests: int, tokens: int) -> None:
        self._requests, self._tokens = requests, tokens
        self._sent: collections.deque[tuple[float, int]] = collections.deque()
        self._held_until = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: int) -> None:
        """Until a request of so many tokens may be sent, which then counts as sent."""
        while (pause := self._pause(tokens)) > 0:
            SLEEP(pause)

    def hold(self, seconds: float) -> None:
        """Let nobody send for so long."""
        with self._lock:
            self._held_until = max(self._held_until, CLOCK() + seconds)

    def _pause(self, tokens: int) -> float:
        with self._lock:
            now = CLOCK()
            if now < self._held_until:
                return self._held_until - now
            while self._sent and self._sent[0][0] <= now - WINDOW_SECONDS:
                self._sent.popleft()
            many = self._requests and len(self._sent) >= self._requests
            # A request larger than the limit is sent alone: it would wait for ever.
            large = self._tokens and self._sent and sum(size for _, size in self._sent) + tokens > self._tokens
            if many or large:
                return self._sent[0][0] + WINDOW_SECONDS - now
            if self._requests or self._tokens:
                self._sent.append((now, tokens))
            return 0.0


def _vectors(answer: Mapping[str, Any], count: int) -> dict[str, Any]:
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = [[float(value) for value in row["embedding"]] for row in rows]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise PassingError(f"no embeddings: {type(error).__name__}: {error}") from None
    if len(vectors) != count or len({len(vector) for vector in vectors}) > 1 or not all(vectors):
        raise PassingError(f"{len(vectors)} embeddings for {count} texts, or of several lengths")
    return {"vectors": vectors}


def _counts(spent: Spent) -> dict[str, float]:
    return {name: value for name, value in dataclasses.asdict(spent).items() if name != "requests" and value}


def _spent_before(log: Path) -> Spent:
    """The sum of a log."""
    total = Spent()
    for line in jsonl.iterate(log):
        total += Spent(
            "error" not in line, line.get("prompt_tokens", 0), line.get("completion_tokens", 0), line.get("cost", 0.0)
        )
    return total
