"""Around each call of the service: it gets its id, is counted, timed and logged once, and ends with a status, whatever happens."""

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode
from grpc.aio import ServicerContext

from service.errors import NotReadyError, OverloadedError
from service.grpc.codes import explain
from service.grpc.messages import ALWAYS_OPEN, SERVICE
from service.logs import FIELDS, request_id
from service.state import State

_IDENTITY = "x-request-id"
_SANE = re.compile(r"[\x20-\x7e]{1,128}")
_UNDER_LOAD = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
_FAULTS = (*_UNDER_LOAD, StatusCode.INTERNAL, StatusCode.UNIMPLEMENTED)
_access = logging.getLogger("normscope.access")

Context = ServicerContext[Any, Message]
"""Of a call; requests are of generated classes, which have no types."""


class CallFailedError(Exception):
    """A request that got an error, as its client is told."""

    def __init__(self, code: StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass
class Observed:
    """What is told of a request; its model is known once its message has been read."""

    model: str = ""


class Calls:
    """The calls in hand, and what the metrics, the access log and the traces are told of them."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.in_hand: set[asyncio.Task[Any]] = set()
        """Their tasks. One that is cancelled once the service stops tells its client so."""
        self.idle: set[asyncio.Task[Any]] = set()
        """Of these, streams that wait for their next message."""

    @asynccontextmanager
    async def hold(self, context: Context) -> AsyncIterator[None]:
        """Around a whole call: a `CallFailedError` becomes its status."""
        identity = _identity(context)
        request_id.set(identity)
        context.set_trailing_metadata(((_IDENTITY, identity),))
        task = asyncio.current_task()
        assert task is not None  # calls are coroutines
        self.in_hand.add(task)
        try:
            yield
        except CallFailedError as failed:
            await context.abort(failed.code, failed.text)
        except asyncio.CancelledError:
            if not self._cut(context):
                raise
            refusal = stopping()
            await context.abort(refusal.code, refusal.text)
        finally:
            self.in_hand.discard(task)

    @property
    def overload(self) -> OverloadedError | None:
        """Why the message of a held call must not be read, if so: messages take memory before they have a place in a queue."""
        return self._more_than_may_be(len(self.in_hand) - len(self.idle))

    @property
    def crowd(self) -> OverloadedError | None:
        """Why no further stream may be opened, if so: idle ones count, too."""
        return self._more_than_may_be(len(self.in_hand))

    def _more_than_may_be(self, calls: int) -> OverloadedError | None:
        # all queues full, and as many calls again whose messages are read, that are refused, or that wait
        limit = self._state.settings.max_queue * (len(self._state.repository.names) + 1)
        if calls <= limit:
            return None
        return OverloadedError(
            f"more than {limit} calls are in hand",
            value=calls,
            limit=limit,
            remedy="try again later, or raise NORMSCOPE_MAX_QUEUE",
        )

    @contextmanager
    def observe(self, method: str, context: Context) -> Iterator[Observed]:
        """Around one request, from its message to the reply: reports it, and raises each error as `CallFailedError`."""
        start = time.perf_counter()
        code = StatusCode.OK
        observed = Observed()
        with self._span(method, context):
            try:
                yield observed
            except asyncio.CancelledError:
                code = StatusCode.DEADLINE_EXCEEDED if time_left(context) == 0 else StatusCode.CANCELLED
                if self._cut(context):
                    code = StatusCode.UNAVAILABLE
                raise
            except Exception as error:
                code, text = explain(method, error)
                raise CallFailedError(code, text) from error
            finally:
                self._report(method, observed.model, code, time.perf_counter() - start)

    def _span(self, method: str, context: Context) -> AbstractContextManager[object]:
        if self._state.tracing is None or method in ALWAYS_OPEN:
            return nullcontext()
        metadata = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        return self._state.tracing.open_call(f"{SERVICE}/{method}", metadata)

    def _cut(self, context: Context) -> bool:
        """Whether a cancelled call was cancelled by the service, not by its client or its deadline."""
        return self._state.lifecycle.stopping and not context.cancelled()

    def _report(self, method: str, model: str, code: StatusCode, seconds: float) -> None:
        model = model if model in self._state.repository.names else ""  # labels stay few
        self._state.metrics.observe_request("GRPC", method, model, code.name, seconds)
        if self._state.tracing is not None:
            self._state.tracing.describe_call(model, request_id.get(), code.name, failed=code in _FAULTS)
        level = _level(code)
        if _access.isEnabledFor(level):
            ms = round(seconds * 1000, 3)
            fields = {"method": "GRPC", "route": method, "model": model, "status": code.name, "ms": ms}
            _access.log(level, "GRPC %s %s %s %.3f ms", method, model or "-", code.name, ms, extra={FIELDS: fields})


def stopping() -> CallFailedError:
    """What calls are told that the service cannot answer any more."""
    error = NotReadyError("the service is about to stop", remedy="send the request again, to another instance or later")
    return CallFailedError(StatusCode.UNAVAILABLE, str(error))


def time_left(context: Context) -> float | None:
    """Seconds until the deadline of the client, from 0; None if it has none."""
    left: float | None = context.time_remaining()  # types-grpcio knows no calls without a deadline
    return None if left is None else max(left, 0)


def _identity(context: Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == _IDENTITY and isinstance(value, str) and _SANE.fullmatch(value):
            return value
    return os.urandom(12).hex()


def _level(code: StatusCode) -> int:
    if code is StatusCode.OK or code in _UNDER_LOAD:
        return logging.DEBUG
    return logging.ERROR if code is StatusCode.INTERNAL else logging.INFO
