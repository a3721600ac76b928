"""ASGI middleware around all of the app: each request gets its id, and is counted, timed, logged and traced once.

Requests that do not enter the app are reported to the same `Observer`: direct answers (`direct.py`) and refusals (`refusal.py`).

By route, never by raw path, so that labels stay few. The id is that of the header `X-Request-ID` if it is sane, else a new one;
every answer carries it. What the app raises ends here: whatever happens, the client gets an answer of the usual shape.
"""

import asyncio
import itertools
import logging
import os
import re
import time

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.answers import answer_error
from service.engine.repository import Repository
from service.errors import ClientGoneError, NotReadyError, ServiceError
from service.logs import FIELDS, request_id
from service.metrics import Metrics
from service.scope import CLIENT_IS_GONE
from service.tracing import Tracing

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_SANE = re.compile(rb"[\x20-\x7e]{1,128}")
_UNDER_LOAD = (429, 503, 504)
_access = logging.getLogger("normscope.access")


class Observer:
    """Knows how a request is told: its id, its route and its model. Reports to `Metrics` and to the access log."""

    def __init__(self, metrics: Metrics, repository: Repository) -> None:
        self._metrics, self._repository = metrics, repository
        self._prefix, self._counter = os.urandom(8).hex(), itertools.count()

    def identity(self, scope: Scope) -> str:
        """The id that the client sent, if it is sane, else a new one."""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _SANE.fullmatch(value):
                return str(value, "ascii")
        return f"{self._prefix}{next(self._counter):016x}"

    def place(self, scope: Scope) -> tuple[str, str]:
        """The route and the model; a model that is not there is as good as none."""
        model = scope.get("path_params", {}).get("model", "")
        return getattr(scope.get("route"), "path", "(none)"), model if model in self._repository.names else ""

    def report(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts, times and logs one answered request, whose id is the current `request_id`."""
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        route, model = self.place(scope)
        self._metrics.observe_request(method=method, route=route, model=model, status=status, seconds=seconds)
        level = _level(status)
        if _access.isEnabledFor(level):
            ms = round(seconds * 1000, 3)
            fields = {"method": method, "route": route, "model": model, "status": status, "ms": ms}
            _access.log(level, "%s %s %s %d %.3f ms", method, route, model or "-", status, ms, extra={FIELDS: fields})


class ObservedRequests:
    """Wraps the app; describes the span of the request if there is one."""

    def __init__(self, app: ASGIApp, observer: Observer, tracing: Tracing | None = None) -> None:
        self._app, self._observer, self._tracing = app, observer, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        identity = self._observer.identity(scope)
        request_id.set(identity)
        status = 0

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
                if self._tracing is not None:
                    self._tracing.describe_request(scope["method"], *self._observer.place(scope), identity)
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except (Exception, asyncio.CancelledError) as error:
            if not status:  # else it was answered, or uvicorn closes the connection: what has begun cannot be taken back
                response = await answer_fault(Request(scope), error)
                await response(scope, receive, observed_send)
        finally:
            self._observer.report(scope, status or 500, time.perf_counter() - start)


async def answer_fault(request: Request, error: BaseException) -> Response:
    """The answer to whatever ended a request, also if the answer to an error fails."""
    if isinstance(error, asyncio.CancelledError):
        error = _why_cancelled(request.scope)
    elif not isinstance(error, Exception):  # such as the panic of a library in Rust
        error = RuntimeError(f"{type(error).__name__}: {error}")
    try:
        return await answer_error(request, error)
    except Exception as fault:
        return await answer_error(request, fault)


def _why_cancelled(scope: Scope) -> ServiceError:
    if CLIENT_IS_GONE in scope:
        return ClientGoneError("the client went away before the answer was ready", remedy="nobody reads this")
    return NotReadyError("the service stopped before the answer was ready", remedy="send the request again")


def _level(status: int) -> int:
    if status in _UNDER_LOAD:
        return logging.DEBUG
    return logging.ERROR if status >= 500 else logging.INFO if status >= 400 else logging.DEBUG
