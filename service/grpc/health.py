"""The standard health service, `grpc.health.v1.Health`: SERVING while the service is ready, else NOT_SERVING."""

import asyncio
from typing import NoReturn

import grpc
from google.protobuf.message import Message

from service.grpc.calls import Context
from service.grpc.messages import SERVICE, HealthRequest, make_health
from service.state import State

_KNOWN = ("", SERVICE)


def is_ready(state: State) -> bool:
    """What all answers about readiness tell."""
    return state.lifecycle.serving and state.repository.ready


class Health:
    """Its methods, named as the protocol does."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._ready = False
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Tells those who watch, if readiness has changed; to be called again and again."""
        if (ready := is_ready(self._state)) != self._ready:
            self._ready = ready
            self._changed.set()
            self._changed = asyncio.Event()

    async def Check(self, request: HealthRequest, context: Context) -> Message:  # noqa: N802  # the protocol's name
        """The status now."""
        if request.service not in _KNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r}; ask for '' or {SERVICE}")
        self.refresh()
        return make_health(self._status(request.service))

    async def Watch(self, request: HealthRequest, context: Context) -> NoReturn:  # noqa: N802  # the protocol's name
        """The status now and whenever it changes, until the client or the service goes away."""
        while True:
            changed = self._changed
            await context.write(make_health(self._status(request.service)))
            await changed.wait()

    def _status(self, service: str) -> str:
        if service not in _KNOWN:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._ready else "NOT_SERVING"
