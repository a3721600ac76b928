"""The hot routes, called directly: matching by one expression each, no dependency solving, no exit stacks.

The framework's own way to a route costs more than the rest of a small request. The routes stay declared in the app, where they are
documented; only the call is shorter. Most requests do not even enter the app: the connection (`service.protocol`) hands them to
`DirectAnswers`. Where something lies around the app, traces or CORS, they come to `DirectRoutes` through it.
"""

import time
from collections.abc import Iterable

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.admission import Gate
from service.api.answers import answer_error
from service.api.observed import Observer, answer_fault
from service.logs import request_id


class HotRoutes:
    """All routes of `routers`; they answer POST, and their endpoints take the request and its path parameters alone."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]

    def match(self, scope: Scope) -> APIRoute | None:
        """The route of a request, if it is one of these; notes it in the scope, as the framework does."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        for route in self._routes:
            if match := route.path_regex.match(scope["path"]):
                scope["route"], scope["path_params"] = route, match.groupdict()
                return route
        return None


class DirectRoutes:
    """ASGI middleware that answers requests for hot routes, and passes on all others."""

    def __init__(self, app: ASGIApp, hot: HotRoutes) -> None:
        self._app, self._hot = app, hot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._hot.match(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request, **scope["path_params"])
        except Exception as error:
            response = await answer_error(request, error)
        await response(scope, receive, send)


class DirectAnswers:
    """Answers requests for hot routes with all that the layers of the app do for them: id, keys, errors, metrics, access log.

    For routes whose answers are whole, neither streams nor with tasks behind them.
    """

    def __init__(self, app: FastAPI, gate: Gate, observer: Observer) -> None:
        self._app, self._gate, self._observer = app, gate, observer

    @staticmethod
    def takes(scope: Scope) -> bool:
        """Whether a request that `HotRoutes.match` has seen can be answered here."""
        return "route" in scope

    async def answer(self, scope: Scope, receive: Receive) -> Response:
        """What the route answers, or the answer to its error; also when it is cancelled."""
        start = time.perf_counter()
        identity = self._observer.identity(scope)
        request_id.set(identity)
        scope["app"] = self._app
        request = Request(scope, receive)
        response: Response
        try:
            self._gate.check(scope)
            response = await scope["route"].endpoint(request, **scope["path_params"])
        except BaseException as error:
            response = await answer_fault(request, error)
        response.raw_headers.append((b"x-request-id", identity.encode()))
        self._observer.report(scope, response.status_code, time.perf_counter() - start)
        return response
