"""The routes: HTTP in, samples of the shared batch out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlagent_jax.models.tokenizer import Tokenizer
from mlagent_jax.sampling.config import Progress, Request
from mlagent_jax.sampling.text import TextStream
from mlagent_jax.serving.access import check_key
from mlagent_jax.serving.errors import ApiError, bad_request
from mlagent_jax.serving.replies import Piece, Style, usage
from mlagent_jax.serving.schema import Asked, ChatRequest, CompletionRequest, Message
from mlagent_jax.serving.service import Service

MAX_BODY_BYTES = 8 * 2**20
GONE_SECONDS = 0.5
"""Between two looks whether a client that waits for a whole answer is still there."""

Endpoint = Callable[[HttpRequest], Awaitable[Response]]


def make_app(service: Service, model: str, api_key: str | None = None) -> Starlette:
    """The ASGI application.

    Args:
        service: Opened and closed with the application.
        model: The name under which the policy is listed; any other name in a request is an error.
        api_key: What clients must send as a bearer token; None: nothing.
    """
    server = _Server(service, model)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.open():
            yield

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def checked(request: HttpRequest) -> Response:
            check_key(api_key, request.headers.get("authorization", ""))
            return await endpoint(request)

        return checked

    async def failed(request: HttpRequest, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body(), error.status, headers)

    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", guarded(server.models)),
            Route("/v1/completions", guarded(server.completions), methods=["POST"]),
            Route("/v1/chat/completions", guarded(server.chat), methods=["POST"]),
        ],
        exception_handlers={ApiError: failed, HTTPException: failed},
        lifespan=lifespan,
    )


class _Server:
    def __init__(self, service: Service, model: str) -> None:
        self._service, self._model = service, model
        self._spellings = service.sampler.tokenizer.spellings()

    async def health(self, request: HttpRequest) -> Response:
        healthy = self._service.healthy
        status = {"status": "ok" if healthy else "failed", "open_samples": self._service.open_samples}
        return JSONResponse(status, 200 if healthy else 503)

    async def models(self, request: HttpRequest) -> Response:
        entry = {"id": self._model, "object": "model", "created": 0, "owned_by": "mlagent-jax"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def completions(self, request: HttpRequest) -> Response:
        asked = CompletionRequest.read(await _body(request))
        if not asked.prompts:
            raise bad_request("prompt is an empty list", "prompt")
        prompts = [self._encode(prompt) for prompt in asked.prompts]
        return await self._answer(request, asked, prompts, chat=False)

    async def chat(self, request: HttpRequest) -> Response:
        asked = ChatRequest.read(await _body(request))
        tokens = chat_tokens(self._service.sampler.tokenizer, asked.messages)
        return await self._answer(request, asked, [self._encode(tokens)], chat=True)

    def _encode(self, prompt: str | list[int]) -> tuple[int, ...]:
        try:
            return self._service.sampler.encode(prompt)
        except ValueError as error:
            raise bad_request(str(error), "prompt") from error

    async def _answer(
        self, request: HttpRequest, asked: CompletionRequest | ChatRequest, prompts: list[tuple[int, ...]], chat: bool
    ) -> Response:
        if asked.model not in ("", self._model):
            raise ApiError(404, f"model {asked.model!r} is not served here: ask for {self._model!r}", "model")
        requests = self._requests(asked, prompts)
        style = Style(self._model, chat, asked.wants_log_probs, self._spellings)
        read = sum(map(len, prompts))
        if asked.stream:
            events = self._events(requests, asked, style, read)
            # The first event is made before the headers are: what is refused is refused with a status.
            first = await anext(events)
            return StreamingResponse(_sent(first, events), media_type="text/event-stream")
        whole = asyncio.ensure_future(self._whole(requests, asked, style, read))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(whole.result()) if whole.done() else Response(status_code=499)
        finally:
            for task in (whole, gone):
                task.cancel()
            await asyncio.gather(whole, gone, return_exceptions=True)

    def _requests(self, asked: CompletionRequest | ChatRequest, prompts: list[tuple[int, ...]]) -> list[Request]:
        limits, sampler = self._service.limits, self._service.sampler
        if asked.limit is not None and asked.limit > limits.new_tokens:
            raise bad_request(
                f"{asked.limit} tokens are more than this server makes, {limits.new_tokens}", "max_tokens"
            )
        stop = tuple(string.encode() for string in asked.stops)
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        requests = []
        for prompt in prompts:
            longest = min(limits.prompt_tokens, sampler.max_length - 1)
            if len(prompt) > longest:
                raise bad_request(f"the prompt has {len(prompt)} tokens; this server takes {longest}", "prompt")
            limit = asked.limit or min(limits.new_tokens, sampler.max_length - len(prompt))
            try:
                sampler.check_length(len(prompt), limit)
            except ValueError as error:
                raise bad_request(str(error), "max_tokens") from error
            requests += [
                Request(0, prompt, limit, seed, sample, asked.distribution, stop) for sample in range(asked.samples)
            ]
        return requests

    async def _pieces(self, requests: list[Request], asked: Asked) -> AsyncIterator[tuple[int, Piece]]:
        texts = [self._service.sampler.text_stream(asked.stops) for _ in requests]
        async with self._service.samples(requests) as heard:
            async for progress in heard:
                yield progress.id, self._piece(texts[progress.id], progress)

    def _piece(self, text: TextStream, progress: Progress) -> Piece:
        spoken = self._service.sampler.spoken(progress.token_ids)
        said = text.feed(spoken, last=progress.finish_reason is not None)
        return Piece(said, progress.token_ids, progress.log_probs.tolist(), progress.finish_reason)

    async def _whole(self, requests: list[Request], asked: Asked, style: Style, read: int) -> dict[str, Any]:
        made = [Piece() for _ in requests]
        async with contextlib.aclosing(self._pieces(requests, asked)) as pieces:
            async for index, piece in pieces:
                made[index].extend(piece)
        return style.whole(made, usage(read, sum(len(piece.token_ids) for piece in made)))

    async def _events(
        self, requests: list[Request], asked: Asked, style: Style, read: int
    ) -> AsyncIterator[dict[str, Any]]:
        count, opened = 0, set()
        async with contextlib.aclosing(self._pieces(requests, asked)) as pieces:
            async for index, piece in pieces:
                if style.chat and index not in opened:
                    opened.add(index)
                    yield style.opening(index)
                count += len(piece.token_ids)
                yield style.chunk(index, piece)
        if asked.counts_usage:
            yield style.closing(usage(read, count))


def chat_tokens(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    """The prompt of a conversation: by the checkpoint's chat template, or without one the messages' text as it stands,
    a blank line between two, which is how such a policy was trained."""
    if tokenizer.has_chat_template:
        return tokenizer.apply_chat_template([{"role": each.role, "content": each.text} for each in messages])
    return tokenizer.encode("\n\n".join(message.text for message in messages))


async def _body(request: HttpRequest) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise ApiError(413, f"the request is larger than {MAX_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


async def _gone(request: HttpRequest) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(GONE_SECONDS)


async def _sent(first: dict[str, Any], events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events, to the last."""
    async with contextlib.aclosing(events):
        yield f"data: {json.dumps(first)}\n\n"
        try:
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
        except ApiError as error:
            yield f"data: {json.dumps(error.body())}\n\n"
            return
        yield "data: [DONE]\n\n"
