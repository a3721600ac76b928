"""Lets a call in or not, before its message is read, as `service.api.admission` does: API keys, no new calls once it stops."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from service.api.keys import Keys
from service.errors import NotReadyError, ServiceError
from service.grpc.calls import Calls, Context
from service.grpc.messages import ALWAYS_OPEN, HEALTH, METHODS, SERVICE
from service.state import State

_KEYLESS = frozenset(f"/{SERVICE}/{method}" for method in ALWAYS_OPEN)
_ADMINISTRATION = frozenset({f"/{SERVICE}/RepositoryModelLoad", f"/{SERVICE}/RepositoryModelUnload"})

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Admission(grpc.aio.ServerInterceptor):
    """Refuses calls; health stays open in every state."""

    def __init__(self, state: State, calls: Calls) -> None:
        self._lifecycle, self._calls = state.lifecycle, calls
        self._keys = Keys.of(state.settings)

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Request, Reply] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Request, Reply] | None":  # its classes are generic in types-grpcio alone
        try:
            self._check(handler_call_details)
        except ServiceError as error:
            return self._refusal(handler_call_details.method.rpartition("/")[2], error)
        return await continuation(handler_call_details)

    def _check(self, details: grpc.HandlerCallDetails) -> None:
        if details.method in _KEYLESS or details.method.startswith(f"/{HEALTH}/"):
            return
        if self._keys is not None:
            metadata = (
                (name.encode(), value if isinstance(value, bytes) else value.encode())
                for name, value in details.invocation_metadata
            )
            self._keys.check(metadata, administers=details.method in _ADMINISTRATION)
        if self._lifecycle.stopping:
            raise NotReadyError("the service is about to stop", remedy="send the request again, to another instance or later")

    def _refusal(self, method: str, error: ServiceError) -> "grpc.RpcMethodHandler[Request, Reply]":
        route = method if method in METHODS else "(none)"  # labels of metrics stay few

        async def refuse(requests: object, context: Context) -> Message:
            async with self._calls.hold(context):
                with self._calls.observe(route, context):
                    raise error

        # a handler of streams fits any call: it ends without a look at the messages
        return grpc.stream_stream_rpc_method_handler(refuse)
