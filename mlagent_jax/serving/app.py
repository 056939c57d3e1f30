"""The routes: HTTP requests in, samples of the shared batch out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlagent_jax.sampling.config import Progress, Request
from mlagent_jax.sampling.text import TextStream
from mlagent_jax.serving.access import check_key, check_site
from mlagent_jax.serving.conversations import chat_tokens
from mlagent_jax.serving.errors import ApiError, bad_request
from mlagent_jax.serving.replies import Offsets, Piece, Style, usage
from mlagent_jax.serving.schema import ChatRequest, CompletionRequest, SamplingRequest
from mlagent_jax.serving.service import Service

MAX_BODY_BYTES = 8 * 2**20
SMALL_BYTES = 16 * 2**10
"""Maximum size of a request that is tokenised on the event loop, in a few milliseconds; a thread reads larger ones."""
LARGE_BYTES = 64 * 2**20
"""Maximum total size of the larger requests that are being read; others are refused with status 429."""
GONE_SECONDS = 0.5
"""Interval of checking whether a client that waits for a complete answer is still connected."""

Endpoint = Callable[[HttpRequest], Awaitable[Response]]


def make_app(service: Service, model: str, api_key: str | None = None, *, parse_special: bool = True) -> Starlette:
    """Make the ASGI application.

    Args:
      service: Service that is opened and closed with the application.
      model: Name under which the policy is listed; any other name in a request is an error.
      api_key: Bearer token that clients must send; None: no token, but clients must be programs of this machine.
      parse_special: Whether names of special tokens in the prompts of completions become those tokens.
    """
    server = _Server(service, model, parse_special)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.open():
            yield

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def checked(request: HttpRequest) -> Response:
            try:
                if api_key is None:
                    check_site(request.headers.get("host", ""), request.headers.get("origin"))
                check_key(api_key, request.headers.get("authorization", ""))
            except ApiError:
                with contextlib.suppress(ClientDisconnect):
                    async for _ in request.stream():  # A client that is still sending would not read the answer.
                        pass
                raise
            return await endpoint(request)

        return checked

    async def failed(request: HttpRequest, error: Exception) -> Response:
        if not isinstance(error, (ApiError, HTTPException)):
            error = ApiError(500, "the server failed on this request: see its log")
        if isinstance(error, HTTPException):
            error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body(), error.status, headers)

    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", guarded(server.models)),
            Route("/v1/models/{name:path}", guarded(server.model)),
            Route("/v1/completions", guarded(server.completions), methods=["POST"]),
            Route("/v1/chat/completions", guarded(server.chat), methods=["POST"]),
        ],
        exception_handlers={ApiError: failed, HTTPException: failed, Exception: failed},
        lifespan=lifespan,
    )


class _Server:
    def __init__(self, service: Service, model: str, parse_special: bool) -> None:
        self._service, self._model, self._parse_special = service, model, parse_special
        self._spellings = service.sampler.tokenizer.spellings()
        longest = max(map(len, self._spellings), default=1)
        self._most_letters = 3 * longest * service.limits.prompt_tokens  # Composing (NFC) leaves at least a third.
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "reader")
        self._large_bytes = 0

    async def health(self, request: HttpRequest) -> Response:
        healthy = self._service.healthy
        status = {"status": "ok" if healthy else "failed", "open_samples": self._service.open_samples}
        return JSONResponse(status, 200 if healthy else 503)

    async def models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._entry]})

    async def model(self, request: HttpRequest) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._entry)

    @property
    def _entry(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "mlagent-jax"}

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise ApiError(404, f"model {name!r} is not served here: ask for {self._model!r}", "model")

    async def completions(self, request: HttpRequest) -> Response:
        return await self._answer(request, *await self._read(request, self._read_completion), chat=False)

    async def chat(self, request: HttpRequest) -> Response:
        return await self._answer(request, *await self._read(request, self._read_chat), chat=True)

    async def _read(self, request: HttpRequest, read: Callable[[bytes], Any]) -> Any:
        """Return `read` of a request's body. Large bodies are read one at a time on a thread, not on the event loop."""
        parts, size = [], 0
        held = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise ApiError(413, f"the request is larger than {MAX_BODY_BYTES} bytes")
                if size > SMALL_BYTES:
                    self._large_bytes += size - held
                    held = size
                    if self._large_bytes > LARGE_BYTES:
                        raise ApiError(429, "too many large requests are being read: try again later")
                parts.append(part)
            body = b"".join(parts)
            if not held:
                return read(body)
            return await asyncio.get_running_loop().run_in_executor(self._reader, read, body)
        except ClientDisconnect as error:
            raise ApiError(499, "the client has left") from error
        finally:
            self._large_bytes -= held

    def _read_completion(self, body: bytes) -> tuple[CompletionRequest, list[Request]]:
        asked = CompletionRequest.read(body)
        if not asked.prompts:
            raise bad_request("prompt is an empty list", "prompt")
        return asked, self._requests(asked, asked.prompts)

    def _read_chat(self, body: bytes) -> tuple[ChatRequest, list[Request]]:
        asked = ChatRequest.read(body)
        self._check_letters(sum(message.letters for message in asked.messages), "messages")
        return asked, self._requests(asked, [chat_tokens(self._service.sampler.tokenizer, asked.messages)])

    def _check_letters(self, letters: int, field: str) -> None:
        """Refuse a text that cannot fit, before it is tokenised."""
        if letters > self._most_letters:
            most = self._longest_prompt
            raise bad_request(f"{field} has {letters} characters; this server takes a prompt of {most} tokens", field)

    def _too_long(self, tokens: int) -> ApiError:
        return bad_request(f"the prompt has {tokens} tokens; this server takes {self._longest_prompt}", "prompt")

    @property
    def _longest_prompt(self) -> int:
        return min(self._service.limits.prompt_tokens, self._service.sampler.max_length - 1)

    def _encode(self, prompt: str | list[int], add_special: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            self._check_letters(len(prompt), "prompt")
        elif len(prompt) > self._longest_prompt:
            raise self._too_long(len(prompt))
        try:
            return self._service.sampler.encode(prompt, parse_special=self._parse_special, add_special=add_special)
        except ValueError as error:
            raise bad_request(str(error), "prompt") from error

    async def _answer(
        self, request: HttpRequest, asked: CompletionRequest | ChatRequest, requests: list[Request], chat: bool
    ) -> Response:
        style = Style(self._model, chat, asked.wants_log_probs, self._spellings)
        read = sum(len(each.prompt) for each in requests[:: asked.samples])
        if not asked.stream:
            return JSONResponse(await _unless_gone(request, self._whole(requests, asked, style, read)))
        events = self._events(requests, asked, style, read)
        # The first event is made before the headers are sent, so that a refusal has its status.
        first = await _unless_gone(request, anext(events))
        return StreamingResponse(_sent(first, events), media_type="text/event-stream")

    def _requests(self, asked: CompletionRequest | ChatRequest, prompts: list[str | list[int]]) -> list[Request]:
        """Return the requested samples, with every value checked.

        Raises:
          ApiError: A sample cannot be made.
        """
        limits, sampler = self._service.limits, self._service.sampler
        self._check_model(asked.model or self._model)
        self._service.check_count(len(prompts) * asked.samples)
        if asked.limit is not None and asked.limit > limits.new_tokens:
            raise bad_request(
                f"{asked.limit} tokens are more than this server makes, {limits.new_tokens}", "max_tokens"
            )
        stop = tuple(string.encode() for string in asked.stops)
        requests = []
        for given in prompts:
            seed = secrets.randbits(63) if asked.seed is None else asked.seed
            prompt = self._encode(given, asked.adds_special)
            if len(prompt) > self._longest_prompt:
                raise self._too_long(len(prompt))
            limit = asked.limit or min(limits.new_tokens, sampler.max_length - len(prompt))
            try:
                sampler.check_length(len(prompt), limit)
            except ValueError as error:
                raise bad_request(str(error), "max_tokens") from error
            requests += [
                Request(0, prompt, limit, seed, sample, asked.distribution, stop) for sample in range(asked.samples)
            ]
        return requests

    async def _pieces(self, requests: list[Request], asked: SamplingRequest) -> AsyncIterator[tuple[int, Piece]]:
        texts = [self._service.sampler.text_stream(asked.stops) for _ in requests]
        offsets = [Offsets(self._spellings) for _ in requests]
        async with self._service.samples(requests) as heard:
            async for progress in heard:
                yield progress.id, self._piece(texts[progress.id], offsets[progress.id], progress)

    def _piece(self, text: TextStream, offsets: Offsets, progress: Progress) -> Piece:
        ids = progress.token_ids
        said = text.feed(self._service.sampler.spoken(ids), last=progress.finish_reason is not None)
        return Piece(said, ids, progress.log_probs.tolist(), offsets.feed(ids), progress.finish_reason)

    async def _whole(self, requests: list[Request], asked: SamplingRequest, style: Style, read: int) -> dict[str, Any]:
        made = [Piece() for _ in requests]
        async with contextlib.aclosing(self._pieces(requests, asked)) as pieces:
            async for index, piece in pieces:
                made[index].extend(piece)
        return style.whole(made, usage(read, sum(len(piece.token_ids) for piece in made)))

    async def _events(
        self, requests: list[Request], asked: SamplingRequest, style: Style, read: int
    ) -> AsyncIterator[dict[str, Any]]:
        count, opened = 0, set()
        async with contextlib.aclosing(self._pieces(requests, asked)) as pieces:
            async for index, piece in pieces:
                if style.chat and index not in opened:
                    opened.add(index)
                    yield style.opening(index)
                count += len(piece.token_ids)
                yield style.chunk(index, piece, asked.counts_usage)
        if asked.counts_usage:
            yield style.closing(usage(read, count))


async def _unless_gone(request: HttpRequest, work: Awaitable[Any]) -> Any:
    """Return the result of `work`, which is cancelled when the client disconnects: its slots become free.

    Raises:
      ApiError: 499, which no client receives.
    """
    done = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ApiError(499, "the client has left")
        return done.result()
    finally:
        for task in (done, gone):
            task.cancel()
        await asyncio.gather(done, gone, return_exceptions=True)


async def _gone(request: HttpRequest) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(GONE_SECONDS)


async def _sent(first: dict[str, Any], events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Yield the server-sent events, the closing one included."""
    async with contextlib.aclosing(events):
        yield f"data: {json.dumps(first)}\n\n"
        try:
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
        except ApiError as error:
            yield f"data: {json.dumps(error.body())}\n\n"
            return
        yield "data: [DONE]\n\n"
