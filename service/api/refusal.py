"""Refusals that the connection (`service.protocol`) writes at once, without a task: overload, and what is not a request.

Under a load of many times the capacity nearly all requests are refused, so a refusal must cost next to nothing: a request to a
model whose queue is full is refused as soon as its head has been read. It gets the answer that the route itself gives when the
queue is full. All refusals have an id and are in the metrics and in the access log; only spans they have none.
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
    """Decides by the head of a request; only the hot routes have queues. Words the answer to what has no whole head, too."""

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
        return self._identified(scope, self._render(scope["path"], overload), start)

    def of_broken(self, target: bytes, headers: list[tuple[bytes, bytes]], error: ServiceError) -> Refusal:
        """The answer to a head that cannot be read to its end, in the shape of the API that it was for.

        Args:
            target: path and query, as far as they came.
            headers: as far as they came, names in lower case.
            error: what is wrong.
        """
        start = time.perf_counter()
        path = str(target.partition(b"?")[0], "latin-1")
        scope = {"method": "", "path": path, "headers": headers}  # which method is not known for sure
        return self._identified(scope, _refusal(path, error), start)

    def _identified(self, scope: Scope, refusal: Refusal, start: float) -> Refusal:
        identity = self._observer.identity(scope)
        request_id.set(identity)
        self._observer.report(scope, refusal.status, time.perf_counter() - start)
        return Refusal(refusal.status, (*refusal.headers, (b"x-request-id", identity.encode())), refusal.body)

    def _render(self, path: str, overload: OverloadedError) -> Refusal:
        key = path, str(overload)
        refusal = self._rendered.get(key)
        if refusal is None:
            refusal = self._rendered[key] = _refusal(path, overload)
        return refusal


def _refusal(path: str, error: ServiceError) -> Refusal:
    answer = error_answer(path, error)
    return Refusal(answer.status_code, tuple(answer.raw_headers), bytes(answer.body))


def _version(scope: Scope) -> str | None:
    version: str | None = scope["path_params"].get("version")
    query = scope["query_string"]
    if version is not None or not (b"version" in query or b"%" in query):  # reading it takes longer than all else here
        return version
    return parse_qs(str(query, "latin-1")).get("version", [None])[-1]
