"""The gRPC server: the state of the app in, a listening port out. Runs on the event loop that starts it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from service.errors import ClientGoneError, NotOfferedError, SlowRequestError
from service.grpc.admission import Admission
from service.grpc.calls import CallFailedError, Calls, Context, stopping, time_left
from service.grpc.health import Health
from service.grpc.inference import infer
from service.grpc.messages import (
    ALWAYS_OPEN,
    METHODS,
    Behaviour,
    Fields,
    add_services,
    error_in_stream,
    in_stream,
    make_reply,
    model_of,
    read_request,
)
from service.grpc.methods import Method, Methods
from service.state import State

_log = logging.getLogger("normscope")
_STREAM = "ModelStreamInfer"
_PING_S, _PONG_S = 60, 20


class GrpcServer:
    """One server; made, started and stopped on the same event loop."""

    def __init__(self, state: State, version: str, port: int) -> None:
        """Takes the port, 0 for a free one, without listening yet.

        Raises:
            OSError: the port cannot be had.
        """
        self._state = state
        self._calls = Calls(state)
        self._health = Health(state)
        settings = state.settings
        self._server = grpc.aio.server(
            interceptors=[Admission(state, self._calls)],
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),  # what an answer may hold is bounded by max_statistics_values
                ("grpc.max_metadata_size", settings.max_header_bytes),
                ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
                ("grpc.server_handshake_timeout_ms", int(settings.header_timeout_s * 1000)),
                ("grpc.keepalive_time_ms", _PING_S * 1000),  # the calls of a client that vanished end
                ("grpc.keepalive_timeout_ms", _PONG_S * 1000),
                ("grpc.so_reuseport", 0),  # two processes on one port are a mistake, not a cluster
            ],
        )
        methods = Methods(state, version).by_name
        behaviours = {name: self._not_offered(name) for name in METHODS}
        behaviours |= {name: self._describes(name, method) for name, method in methods.items()}
        behaviours |= {"ModelInfer": self._single("ModelInfer", self._infer), _STREAM: self._stream}
        add_services(self._server, behaviours, self._health.behaviours)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self._address = f"{host}:{self._server.add_insecure_port(f'{host}:{port}')}"
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {host}:{port}: {error}") from error

    async def start(self) -> None:
        """Listens."""
        await self._server.start()
        _log.info("gRPC running on %s", self._address)

    def refresh(self) -> None:
        """Lets those who watch the health know of changes; to be called again and again."""
        self._health.refresh()

    def finish(self) -> set[asyncio.Task[Any]]:
        """Once the lifecycle is `stopping`: ends the streams that wait for a message; the calls that are still worked on."""
        for task in self._calls.idle:
            task.cancel()
        return set(self._calls.in_hand)

    async def stop(self) -> None:
        """Tells the calls in hand that they get no answer, and closes the port."""
        if cut := set(self._calls.in_hand):
            for task in cut:
                task.cancel()
            await asyncio.wait(cut)
        await self._server.stop(None)

    def _single(self, name: str, answer: Callable[[Any, int, Context], Awaitable[Message]]) -> Behaviour:
        """The behaviour of a method that answers one message by one."""

        async def behave(requests: object, context: Context) -> None:
            async with self._calls.hold(context):
                with self._calls.observe(name, context) as observed:
                    if name not in ALWAYS_OPEN and (overload := self._calls.overload) is not None:
                        raise overload
                    message = await self._message(context)
                    request = read_request(name, message)
                    observed.model = model_of(request)
                    reply = await answer(request, len(message), context)
                await context.write(reply)

        return behave

    async def _message(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._state.settings.body_timeout_s):
                message = await context.read()
        except TimeoutError:
            remedy = "send it faster, or raise NORMSCOPE_BODY_TIMEOUT_S"
            raise SlowRequestError("the message did not arrive in time", remedy=remedy) from None
        if not isinstance(message, bytes):  # the end of the call
            raise ClientGoneError("the call ended before its message", remedy="send one message")
        return message

    def _describes(self, name: str, method: Method) -> Behaviour:
        async def answer(request: Any, size: int, context: Context) -> Message:
            return make_reply(name, await method(request))

        return self._single(name, answer)

    def _not_offered(self, name: str) -> Behaviour:
        async def refuse(request: object) -> Fields:
            raise NotOfferedError(
                f"{name} belongs to an extension that is not offered",
                value=name,
                remedy="ServerMetadata lists the extensions; tensors travel in messages, the level of the log is a setting",
            )

        return self._describes(name, refuse)

    async def _infer(self, request: Any, size: int, context: Context) -> Message:
        return await infer(self._state, request, size, time_left(context))

    async def _stream(self, requests: object, context: Context) -> None:
        async with self._calls.hold(context):
            if (crowd := self._calls.crowd) is not None:
                with self._calls.observe(_STREAM, context):
                    raise crowd
            while isinstance(message := await self._next(context), bytes):
                await context.write(await self._answer_in_stream(message, context))

    async def _next(self, context: Context) -> Any:
        task = asyncio.current_task()
        assert task is not None  # calls are coroutines
        if self._state.lifecycle.stopping:
            raise stopping()
        self._calls.idle.add(task)
        try:
            return await context.read()
        finally:
            self._calls.idle.discard(task)

    async def _answer_in_stream(self, message: bytes, context: Context) -> Message:
        request = None
        try:
            with self._calls.observe(_STREAM, context) as observed:
                request = read_request(_STREAM, message)
                observed.model = model_of(request)
                return in_stream(await infer(self._state, request, len(message), time_left(context)))
        except CallFailedError as failed:
            return error_in_stream(request, failed.text)
