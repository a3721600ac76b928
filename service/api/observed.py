"""ASGI middleware that counts and times every request by route, never by raw path: labels stay few."""

import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class ObservedRequests:
    """Wraps the app and reports to `Metrics`."""

    def __init__(self, app: ASGIApp, metrics: Metrics, models: Collection[str]) -> None:
        self._app, self._metrics, self._models = app, metrics, models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        start = time.perf_counter()

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            model = scope.get("path_params", {}).get("model", "")
            self._metrics.observe_request(
                method=scope["method"] if scope["method"] in _METHODS else "(other)",
                route=route,
                model=model if model in self._models else "",
                status=status,
                seconds=time.perf_counter() - start,
            )
