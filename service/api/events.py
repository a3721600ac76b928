"""GET /v1/models/{model}/events: server-sent events, one for each window of the statistics over traffic."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import orjson
from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from service.api.answers import documented_errors
from service.api.layers import MAX_PATTERN_LENGTH
from service.api.query import LAYERS_HELP
from service.api.statistics import Side
from service.api.timerange import iso
from service.api.traffic import Choice, totals
from service.engine.model import ServedModel
from service.errors import InvalidRequestError, ServiceError
from service.state import State

router = APIRouter(prefix="/v1/models", tags=["statistics"])

_LATE_S = 1.0  # what was served in a window may be counted a moment later
_JUDGED_S = 5.0  # later than that, a window that was not looked at for drift goes out all the same
_LOOK_S = 0.5  # between two looks whether the service ends
_COMMENT_S = 15.0  # proxies close connections that are silent for longer
_MAX_MISSED = 60


class EventsQuery(BaseModel):
    """Parameters of the stream of windows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: str = Field(default="*", max_length=MAX_PATTERN_LENGTH, description=LAYERS_HELP)
    side: Side = None
    version: str | None = Field(default=None, description="of the model; the newest where it is not given")


@router.get(
    "/{model}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": "event: window\nid: 1777888800\ndata: {}"}}
        },
        **documented_errors(404, 422, 503),
    },
)
async def events(
    request: Request,
    model: str,
    query: Annotated[EventsQuery, Query()],
    last_event_id: Annotated[
        str | None, Header(description="id of the last event that arrived; those since then come first")
    ] = None,
) -> Response:
    """One event `window` for each window that ends, named by its start: totals, as in the statistics, and the state of drift."""
    source = _Source(State.of(request), model, query)
    source.resolve()
    window_s = source.window_s
    now = int(time.time())
    first = now // window_s * window_s
    if last_event_id:
        first = max(_parse_id(last_event_id, window_s, now) + window_s, first - _MAX_MISSED * window_s)
    return StreamingResponse(
        _stream(source, first),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@dataclass(frozen=True)
class _Source:
    """What a stream is made from."""

    state: State
    model: str
    query: EventsQuery

    @property
    def window_s(self) -> int:
        return self.state.settings.statistics_window_s

    @property
    def late_s(self) -> float:
        """Seconds from the end of a window until it is whole here: other replicas of a database store their part later."""
        return _LATE_S + (self.state.settings.statistics_flush_s if self.state.statistics.database.shared else 0)

    def is_whole(self, start: int) -> bool:
        """Whether all that was served in a window is counted, and looked at for drift.

        Raises:
            ServiceError: the model is not served any more.
        """
        late_s = time.time() - start - self.window_s - self.late_s
        if late_s < 0:
            return False
        served = self.state.repository.get(self.model, self.query.version)
        return late_s >= _JUDGED_S or served.ranks is None or self.state.drift.status(served).seen >= start + self.window_s

    def resolve(self) -> tuple[ServedModel, Choice]:
        """What serves the model now, after it was replaced also, and what of it is shown.

        Raises:
            ServiceError: it is not served any more, has none of the layers, or too many.
        """
        served = self.state.repository.get(self.model, self.query.version)
        choice = Choice.of(served.manifest, self.query.layers, self.query.side)
        choice.check_size(0, self.state.settings.max_statistics_values)
        return served, choice

    async def read(self, start: int) -> bytes:
        """The event of one window, on a thread; nothing where it was merged into a longer one."""
        return await to_thread.run_sync(self.event, start, limiter=self.state.querying)

    def event(self, start: int) -> bytes:
        """The same, on the thread that calls."""
        served, choice = self.resolve()
        end = start + self.window_s
        period = self.state.statistics.history.read(served.traffic, start, end)
        if (period.since, period.until) != (start, end):
            return b""
        data = orjson.dumps(
            {
                "start": iso(start),
                "end": iso(end),
                "complete": period.complete,
                "requests": period.requests,
                "sampled": period.sampled,
                "drift": None if served.ranks is None else self.state.drift.status(served).state_at(start),
                "layers": totals(period, choice),
            }
        )
        return b"event: window\nid: %d\ndata: %s\n\n" % (start, data)


def _parse_id(text: str, window_s: int, now: int) -> int:
    if text.isdecimal() and len(text) <= len(str(now)) and (start := int(text)) <= now:
        return start // window_s * window_s
    raise InvalidRequestError(
        f"Last-Event-ID: {text[:50]!r} is none of ours",
        value=text[:50],
        limit="seconds since 1970, up to now",
        remedy="leave it out",
    )


async def _stream(source: _Source, first: int) -> AsyncIterator[bytes]:
    """Ends when the service does or the model is gone; the client opens it again, elsewhere or later, and names the last event
    it has.
    """
    yield b"retry: 2000\n\n"
    start, spoke = first, time.monotonic()
    while source.state.lifecycle.serving:
        try:
            event = await source.read(start) if source.is_whole(start) else None
        except ServiceError:
            return
        if event is not None:
            yield event
            start += source.window_s
            spoke = time.monotonic()
        else:
            await asyncio.sleep(_LOOK_S)
            if time.monotonic() - spoke >= _COMMENT_S:
                yield b": still here\n\n"
                spoke = time.monotonic()
