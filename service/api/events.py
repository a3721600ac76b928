"""GET /v1/models/{model}/events: server-sent events, one for each window of the statistics over traffic."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from service.api.answers import documented_errors
from service.api.layers import MAX_PATTERN_LENGTH
from service.api.query import LAYERS_HELP
from service.api.statistics import Side
from service.api.timerange import iso
from service.api.traffic import Choice, totals
from service.errors import InvalidRequestError
from service.lifecycle import Lifecycle
from service.state import State
from service.statistics.history import History
from service.statistics.traffic import TrafficStatistics

router = APIRouter(prefix="/v1/models", tags=["statistics"])

_LATE_S = 1.0  # what was served in a window may be counted a moment later
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
    """One event `window` for each window that ends, named by its start: its totals, as in the statistics; also without traffic."""
    state = State.of(request)
    served = state.repository.get(model, query.version)
    choice = Choice.of(served.manifest, query.layers, query.side)
    choice.check_size(0, state.settings.max_statistics_values)
    window_s = served.traffic.window_s
    now = int(time.time())
    first = now // window_s * window_s
    if last_event_id:
        first = max(_parse_id(last_event_id, window_s, now) + window_s, first - _MAX_MISSED * window_s)
    return StreamingResponse(
        _stream(state.statistics.history, served.traffic, choice, first, state.lifecycle),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def _parse_id(text: str, window_s: int, now: int) -> int:
    if text.isdecimal() and len(text) <= len(str(now)) and (start := int(text)) <= now:
        return start // window_s * window_s
    raise InvalidRequestError(
        f"Last-Event-ID: {text[:50]!r} is none of ours",
        value=text[:50],
        limit="seconds since 1970, up to now",
        remedy="leave it out",
    )


async def _stream(
    history: History, traffic: TrafficStatistics, choice: Choice, first: int, lifecycle: Lifecycle
) -> AsyncIterator[bytes]:
    """Ends when the service does; the client opens it again, elsewhere or later, and names the last event it has."""
    yield b"retry: 2000\n\n"
    start, window_s, spoke = first, traffic.window_s, time.monotonic()
    while lifecycle.serving:
        if time.time() >= start + window_s + _LATE_S:
            yield await run_in_threadpool(_event, history, traffic, choice, start)
            start += window_s
            spoke = time.monotonic()
        else:
            await asyncio.sleep(_LOOK_S)
            if time.monotonic() - spoke >= _COMMENT_S:
                yield b": still here\n\n"
                spoke = time.monotonic()


def _event(history: History, traffic: TrafficStatistics, choice: Choice, start: int) -> bytes:
    period = history.read(traffic, start, start + traffic.window_s)
    data = orjson.dumps(
        {
            "start": iso(start),
            "end": iso(start + traffic.window_s),
            "complete": period.complete,
            "requests": period.requests,
            "sampled": period.sampled,
            "layers": totals(period, choice),
        }
    )
    return b"event: window\nid: %d\ndata: %s\n\n" % (start, data)
