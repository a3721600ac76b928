"""The standard health service, `grpc.health.v1.Health`: SERVING while the service is ready, else NOT_SERVING."""

import asyncio
from collections.abc import Mapping

import grpc

from service.errors import InvalidRequestError
from service.grpc.calls import Context
from service.grpc.messages import SERVICE, Behaviour, make_health, read_health
from service.state import State

_KNOWN = ("", SERVICE)


def is_ready(state: State) -> bool:
    """What all answers about readiness tell."""
    return state.lifecycle.serving and state.repository.ready


class Health:
    """Its methods, by the names that the protocol has for them."""

    def __init__(self, state: State) -> None:
        self.behaviours: Mapping[str, Behaviour] = {"Check": self._check, "Watch": self._watch}
        self._state = state
        self._ready = False
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Tells those who watch, if readiness has changed; to be called again and again."""
        if (ready := is_ready(self._state)) != self._ready:
            self._ready = ready
            self._changed.set()
            self._changed = asyncio.Event()

    async def _check(self, requests: object, context: Context) -> None:
        """The status now."""
        service = await self._service(context)
        if service not in _KNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {service[:100]!r}; ask for '' or {SERVICE}")
        self.refresh()
        await context.write(make_health(self._status(service)))

    async def _watch(self, requests: object, context: Context) -> None:
        """The status now and whenever it changes, until the client or the service goes away."""
        service = await self._service(context)
        while True:
            changed = self._changed
            await context.write(make_health(self._status(service)))
            await changed.wait()

    async def _service(self, context: Context) -> str:
        """The service that the call asks about."""
        try:
            async with asyncio.timeout(self._state.settings.body_timeout_s):
                return read_health(await context.read())
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive in time")
        except InvalidRequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _status(self, service: str) -> str:
        if service not in _KNOWN:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._ready else "NOT_SERVING"
