"""One HTTP connection: uvicorn's protocol, with the limits that it lacks against slow and greedy clients.

| what a client does | what happens |
| --- | --- |
| does not complete the head of a request within `header_timeout_s` | 408 and the end of the connection |
| connects and sends nothing for that time | the end of the connection |
| sends a head larger than `max_header_bytes` | 431 and the end of the connection |
| sends what is not HTTP | 400 and the end of the connection |
| does not complete the body within `body_timeout_s` after the head, or breaks its chunks | whoever reads it answers 408 or 400 |
| sends more requests before the answer | they wait; after `_PIPELINED` of them nothing more is read until it is their turn |
| goes away before the answer | the task of the request is cancelled, so that its work is dropped and its place given back |
| asks for another protocol by `Upgrade` | the header is ignored; the parser alone would take the body for that protocol |
| reads nothing of a large answer for `_STALLED_S` | the end of the connection |
| leaves the connection idle between two requests for `idle_timeout_s` | the end of the connection |
| asks a model whose queue is full | refused once the head is read, see `service.api.refusal` |

The size of a body is bounded where it is read, in `service.api.bodies`. After 400, 431 and the 408 of a late head a little more is
read and dropped: a connection that is closed with bytes unread is reset, and the client would lose the answer.

None of it costs a usual request more than a few comparisons: but for one of each idle connection, timers run only for what has not
come with the first packet. A request for a prediction is handed to `service.api.direct` and its answer written here, all others go
through the app.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.alarm import Alarm
from service.api.direct import DirectAnswers
from service.api.refusal import Refusal
from service.connections import ConnectionsState
from service.cork import LARGE_BYTES, Cork
from service.errors import HeadTooLargeError, InvalidHttpError, ServiceError, SlowRequestError
from service.scope import BODY_ERROR, CLIENT_IS_GONE

_STALLED_S = 60
_LINGER_S = 2
_LINGER_BYTES = 1 << 20
# So many requests may wait behind the one in hand while we still read: who does not read does not see that the client is gone.
# Each holds at most its head and the 64 KiB of its body after which uvicorn pauses.
_PIPELINED = 8
_CLOSE = (b"connection", b"close")
_INVALID = InvalidHttpError("the request is not HTTP/1.1", remedy="send a valid request")
_LATE_HEAD = SlowRequestError(
    "the head of the request did not arrive in time", remedy="send it faster, or raise NORMSCOPE_HEADER_TIMEOUT_S"
)
_LATE_BODY = SlowRequestError("the body did not arrive in time", remedy="send it faster, or raise NORMSCOPE_BODY_TIMEOUT_S")
_LARGE_HEAD = HeadTooLargeError(
    "the head of the request is too large", remedy="send fewer headers, or raise NORMSCOPE_MAX_HEADER_BYTES"
)


class _HeadTooLargeError(Exception):
    """Stops the parser."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection within the limits; once the service drains, every answer is the last of its connection."""

    def __init__(
        self,
        config: Config,
        server_state: ConnectionsState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits, self._lifecycle, self._refuse = server_state.limits, server_state.lifecycle, server_state.refuse
        self._direct = server_state.direct
        self._in_message = self._in_head = False
        self._head_bytes = 0  # of the head that is being read, but for what shares a packet with the request before it
        self._too_large = False
        self._upgrades = False  # the head asks for another protocol
        self._task: asyncio.Task[None] | None = None  # of the request that is worked on; others may wait behind it
        self._working: RequestResponseCycle | None = None
        self._head_alarm = Alarm(self.loop)
        self._body_alarm = Alarm(self.loop)
        self._stall_alarm = Alarm(self.loop)
        self._unsent = 0
        self._linger_alarm = Alarm(self.loop)
        self._idle_alarm = Alarm(self.loop)
        self._idle_since = 0.0  # when the latest answer was complete
        self._cork: Cork | None = None  # of the latest answer
        self._dropped: int | None = None  # bytes that came after the connection was given up; None: it was not

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._head_alarm.set(self._limits.header_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_alarm.cancel()
        self._body_alarm.cancel()
        self._stall_alarm.cancel()
        self._linger_alarm.cancel()
        self._idle_alarm.cancel()
        if self._task is not None and self._working is not None and not self._working.response_complete:
            self._working.disconnected = True
            self._working.scope[CLIENT_IS_GONE] = True  # type: ignore[literal-required]  # uvicorn's type has no room for others
            self._task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._dropped is not None:
            self._dropped += len(data)
            if self._dropped > _LINGER_BYTES:
                self.transport.close()
            return
        if self._in_head or not self._in_message:
            self._head_bytes += len(data)
        self._parse(data)
        if self._dropped is not None:
            return
        if self._in_head:
            if self._head_bytes > self._limits.max_header_bytes:
                self._give_up(_LARGE_HEAD)
                return
        elif self._in_message and not self._body_alarm:
            self._body_alarm.set(self._limits.body_timeout_s, self._body_is_late)
        if self._in_head and not self._head_alarm and not self.transport.is_closing():
            self._head_alarm.set(self._limits.header_timeout_s, self._head_is_late)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._give_up(_LARGE_HEAD if self._too_large else _INVALID)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrades:  # else it is CONNECT, which has been answered
                self._parse(self._head_without_upgrade() + data[upgrade.args[0] :])

    def _head_without_upgrade(self) -> bytes:
        lines = (b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        return b"".join([first, *lines, b"\r\n"])

    def on_message_begin(self) -> None:
        self._in_message = self._in_head = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._in_message = False
        self._body_alarm.cancel()
        if not self._upgrades:
            super().on_message_complete()
            if self.cycle.response_complete:  # it was answered before its body had come
                self._begin_idle()

    def on_headers_complete(self) -> None:
        self._head_alarm.cancel()
        if self._head_bytes > self._limits.max_header_bytes and self._head_size() > self._limits.max_header_bytes:
            self._too_large = True
            raise _HeadTooLargeError
        self._head_bytes = 0
        self._upgrades = self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)
        if self._upgrades:
            return  # `_parse` gives the head to the parser again
        super().on_headers_complete()
        if len(self.pipeline) <= _PIPELINED:
            self.flow.resume_reading()
        self._in_head = False
        if not self._lifecycle.serving:
            self.close_after_answer()

    def close_after_answer(self) -> None:
        """Makes the answer to the request in hand, if there is one, the last of the connection."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._stall_alarm.set(_STALLED_S, self._check_progress)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall_alarm.cancel()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def _head_is_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the next head waits behind an answer of ours
            self._head_alarm.set(self._limits.header_timeout_s, self._head_is_late)
        elif self._in_head:
            self._give_up(_LATE_HEAD)
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        if self.cycle.response_complete:
            self.transport.close()
            return
        self._tell_reader(_LATE_BODY)

    def _tell_reader(self, error: ServiceError) -> None:
        self.cycle.scope[BODY_ERROR] = error  # type: ignore[literal-required]  # as above
        self.cycle.message_event.set()

    def _give_up(self, error: ServiceError) -> None:
        self._dropped = 0
        self._head_alarm.cancel()
        self._body_alarm.cancel()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            known = (self.url, self.headers) if self._in_head else (b"", [])
            self._write_last(self._refuse.of_broken(*known, error))
            return
        if self._in_message and not self._in_head:
            self._tell_reader(error)
        self.close_after_answer()  # to the request in hand; what follows it gets none

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        following: tuple[RequestResponseCycle, ASGI3Application] | None = (cycle, app)
        while following is not None:  # hundreds of requests that are refused at once may have come in one packet
            following = self._begin(*following)

    def _begin(self, cycle: RequestResponseCycle, app: ASGI3Application) -> tuple[RequestResponseCycle, ASGI3Application] | None:
        """Begins to answer a request; if it is answered at once, returns the next of the pipeline."""
        refusal = self._refuse(cycle.scope)  # type: ignore[arg-type]  # uvicorn's own type of a scope
        if refusal is None:
            if self._direct is not None and self._direct.takes(cycle.scope):  # type: ignore[arg-type]  # as above
                running = self._answer_directly(self._direct, cycle)
            else:
                self._cork = Cork(self.transport, self.loop)
                cycle.transport = self._cork  # type: ignore[assignment]  # has what the cycle uses
                running = cycle.run_asgi(app)
            self._working, self._task = cycle, self.loop.create_task(running)
            self._task.add_done_callback(self.tasks.discard)
            self.tasks.add(self._task)
            return None
        cycle.response_started = cycle.response_complete = True
        if cycle.keep_alive and self._lifecycle.serving:  # the body, if there is more of it, is read and dropped
            self._write(refusal.status, refusal.headers, refusal.body, last=False)
            return self._complete()
        self._dropped = 0
        self._write_last(refusal)
        return None

    async def _answer_directly(self, direct: DirectAnswers, cycle: RequestResponseCycle) -> None:
        try:
            response = await direct.answer(cycle.scope, cycle.receive)  # type: ignore[arg-type]  # as above
        except BaseException:  # a fault of what reports it
            self.transport.close()
            raise
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if cycle.disconnected or self.transport.is_closing():
            return
        if _CLOSE in response.raw_headers:
            cycle.keep_alive = False
        self._write(response.status_code, response.raw_headers, bytes(response.body), last=not cycle.keep_alive)
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def on_response_complete(self) -> None:
        """As in uvicorn, but with one timer for an idle connection, not one for each answer."""
        if (following := self._complete()) is not None:
            self._start_asgi_task(*following)

    def _complete(self) -> tuple[RequestResponseCycle, ASGI3Application] | None:
        """Notes that a request has been answered; returns the next of the pipeline."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return None
        self.flow.resume_reading()
        if self.pipeline:
            return self.pipeline.pop()
        self._begin_idle()
        return None

    def _begin_idle(self) -> None:
        self._idle_since = self.loop.time()
        if not self._idle_alarm:
            self._idle_alarm.set(self.timeout_keep_alive, self._check_idle)

    def _check_idle(self) -> None:
        self._idle_alarm.cancel()
        if self._in_message or not self.cycle.response_complete:
            return  # the end of the body or of the answer, whatever comes later, sets it again
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle_alarm.set(left, self._check_idle)
        else:
            self.transport.close()

    def _write(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, last: bool) -> None:
        if self._cork is not None:  # the app's answer to the request before may still lie there, if it had no body
            self._cork.flush()
        lines = [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers)]
        if last and _CLOSE not in headers:
            lines.append(b"connection: close\r\n")
        head = b"".join([STATUS_LINE[status], *lines, b"\r\n"])
        if len(body) > LARGE_BYTES:
            self.transport.write(head)
            self.transport.write(body)
        else:
            self.transport.write(head + body)  # one packet: each costs a system call here and a wake-up of the client

    def _write_last(self, answer: Refusal) -> None:
        self._write(answer.status, answer.headers, answer.body, last=True)
        self.transport.write_eof()
        self._linger_alarm.set(_LINGER_S, self.transport.close)

    def _check_progress(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._stall_alarm.set(_STALLED_S, self._check_progress)
