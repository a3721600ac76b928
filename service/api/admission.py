"""What lets a request in or not: API keys, and no new requests once the service stops."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.answers import error_answer
from service.api.keys import Keys
from service.errors import NotReadyError, ServiceError
from service.lifecycle import Lifecycle

_HEALTH = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
_METRICS = "/metrics"
_ADMINISTRATION = "/v2/repository/models/"  # below it are load and unload alone


def keyless(*, open_metrics: bool) -> frozenset[str]:
    """The paths that no key is asked for."""
    return _HEALTH | {_METRICS} if open_metrics else _HEALTH


def administers(path: str) -> bool:
    """Whether a request to this path, or one of this pattern, loads or unloads a model."""
    return path.startswith(_ADMINISTRATION)


class Gate:
    """Lets in whoever has the right key, until the end has begun.

    Health stays open in every state, so that an orchestrator sees the reason; the metrics are there until the end.
    """

    def __init__(self, lifecycle: Lifecycle, keys: Keys | None, *, open_metrics: bool) -> None:
        self._lifecycle, self._keys = lifecycle, keys
        self._keyless = keyless(open_metrics=open_metrics)

    def check(self, scope: Scope) -> None:
        """Returns if a request may go on.

        Raises:
            UnauthorizedError, ForbiddenError: not with its key.
            NotReadyError: the service is about to stop.
        """
        path = scope["path"]
        if self._keys is not None and path not in self._keyless:
            self._keys.check(scope["headers"], administers=administers(path))
        if self._lifecycle.stopping and path not in _HEALTH and path != _METRICS:
            raise NotReadyError("the service is about to stop", remedy="send the request again, to another instance or later")


class Admission:
    """Answers 503, 401 or 403 to requests that do not come through the gate; passes on the rest."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._gate.check(scope)
            except ServiceError as error:
                await error_answer(scope["path"], error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
