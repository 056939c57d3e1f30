"""HTTP server of the report of running runs, for this machine only.

    /                    the page
    /live.json           everything but the trajectories, with their version
    /trajectories.json   the trajectories of all runs

Requests read the workdirs' files, at most once in `refresh_seconds`. Script output is sent as JSON, never as HTML. A
request under another host name (DNS rebinding) is rejected.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from mlagent_jax.reporting.html import render
from mlagent_jax.reporting.page_data import DEFAULT_LIMITS, RunReader, page_data
from mlagent_jax.reporting.summary import pool_summaries
from mlagent_jax.runtime.jsonl import RecordError

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every response: no other site may show or read it."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Report:
    """Newest data of several runs, read at most once in `refresh_seconds`; thread-safe."""

    def __init__(
        self,
        workdirs: Sequence[epath.PathLike],
        refresh_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = DEFAULT_LIMITS.shared(len(workdirs))
        self._workdirs = list(workdirs)
        self._readers = [RunReader(workdir, limits) for workdir in workdirs]
        self._refresh_seconds, self._clock = refresh_seconds, clock
        self._lock = threading.Lock()
        self._read_at = -refresh_seconds
        self._data: dict[str, Any] = {}
        self._pooled: tuple[Any, Any] = (None, None)

    def data(self) -> dict[str, Any]:
        """Return the data of `page_data`.

        Raises:
          FileNotFoundError, RecordError: As `RunReader.read`.
        """
        with self._lock:
            if self._clock() - self._read_at >= self._refresh_seconds:
                runs = [reader.read() for reader in self._readers]
                self._data = page_data(runs, self._pool(runs), live=self._refresh_seconds)
                self._read_at = self._clock()
            return self._data

    def _pool(self, runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the pooled runs, recomputed only when a run's figures have changed."""
        if len(runs) < 2:
            return None
        figures = [run["summary"] for run in runs]
        if self._pooled[0] != figures:
            self._pooled = (figures, pool_summaries(self._workdirs))
        return self._pooled[1]


def make_app(report: Report) -> Starlette:
    """Return the ASGI application."""

    async def page(request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(lambda: render(report.data())))

    async def live(request: Request) -> Response:
        return await run_in_threadpool(lambda: _json(without_trajectories(report.data())))

    async def trajectories(request: Request) -> Response:
        return await run_in_threadpool(lambda: _json([run["trajectories"] for run in report.data()["runs"]]))

    async def failed(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"report: {error}", 503)

    async def guarded(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(getattr(error, "detail", "not found")), getattr(error, "status_code", 500))

    return Starlette(
        routes=[Route("/", page), Route("/live.json", live), Route("/trajectories.json", trajectories)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)),
            Middleware(_Headers),
            Middleware(GZipMiddleware),
        ],
        exception_handlers={404: guarded, 405: guarded, RecordError: failed, FileNotFoundError: failed},
    )


def without_trajectories(data: dict[str, Any]) -> dict[str, Any]:
    """Replace each run's trajectories, which are large and rarely change, by a version."""
    runs = [{name: value for name, value in run.items() if name != "trajectories"} for run in data["runs"]]
    versions = [hashlib.sha256(json.dumps(run["trajectories"]).encode()).hexdigest()[:16] for run in data["runs"]]
    return {**data, "runs": runs, "trajectories": "-".join(versions)}


def _json(data: Any) -> Response:
    return Response(json.dumps(data, allow_nan=False, separators=(",", ":")), media_type="application/json")


class _Headers:
    """Middleware that adds `HEADERS` to every response."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
