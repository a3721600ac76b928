"""Overload: refuses a request to a model whose queue is full as soon as its head has been read.

Under a load of many times the capacity nearly all requests are refused, so a refusal must cost next to nothing: it makes no task,
waits for no body and is written at once by the connection (`service.protocol`). It is the answer that the route itself gives when
the queue is full, with its id, in the metrics and in the access log; only a span it has none.
"""

import time
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.types import Scope

from service.api.answers import error_answer
from service.api.direct import HotRoutes
from service.api.keys import Keys
from service.api.observed import Observer
from service.engine.repository import Repository
from service.errors import OverloadedError, ServiceError
from service.lifecycle import Lifecycle
from service.logs import request_id


@dataclass(frozen=True)
class Refusal:
    """A whole answer; the names of the headers are in lower case."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class EarlyRefusal:
    """Decides by the head of a request; only the hot routes have queues."""

    def __init__(self, hot: HotRoutes, repository: Repository, observer: Observer, lifecycle: Lifecycle, keys: Keys | None) -> None:
        self._hot, self._repository, self._observer = hot, repository, observer
        self._lifecycle, self._keys = lifecycle, keys
        self._rendered: dict[tuple[str, str], Refusal] = {}

    def __call__(self, scope: Scope) -> Refusal | None:
        """The refusal; None for a request that may go on to its route, which tells every other problem."""
        start = time.perf_counter()
        if self._hot.match(scope) is None or self._lifecycle.stopping:
            return None
        try:
            overload = self._repository.get(scope["path_params"]["model"], _version(scope)).overload
            if overload is None:
                return None
            if self._keys is not None:
                self._keys.check(scope["headers"], administers=False)
        except ServiceError:
            return None
        if any(name == b"origin" for name, _ in scope["headers"]):  # a browser may need more headers than these
            return None
        identity = self._observer.identity(scope)
        request_id.set(identity)
        refusal = self._render(scope["path"], overload)
        self._observer.report(scope, refusal.status, time.perf_counter() - start)
        return Refusal(refusal.status, (*refusal.headers, (b"x-request-id", identity.encode())), refusal.body)

    def _render(self, path: str, overload: OverloadedError) -> Refusal:
        key = path, str(overload)
        refusal = self._rendered.get(key)
        if refusal is None:
            answer = error_answer(path, overload)
            refusal = self._rendered[key] = Refusal(answer.status_code, tuple(answer.raw_headers), bytes(answer.body))
        return refusal


def _version(scope: Scope) -> str | None:
    if not scope["query_string"]:
        version: str | None = scope["path_params"].get("version")
        return version
    return parse_qs(str(scope["query_string"], "latin-1")).get("version", [None])[-1]
