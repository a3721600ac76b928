"""GET /v1/models/{model}/statistics: the statistics over traffic between two moments, as totals and by step."""

import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.answers import documented_errors, json_answer
from service.api.layers import MAX_PATTERN_LENGTH
from service.api.query import LAYERS_HELP
from service.api.query_route import QueryRoute
from service.api.tables import ARROW, CSV, JSON, PARQUET, negotiate, table_answer
from service.api.timerange import MOMENT_HELP, iso, parse_range, parse_step
from service.api.traffic import Choice, series, table, totals
from service.api.traffic_schemas import TrafficAnswer
from service.errors import InvalidRequestError
from service.state import State

router = APIRouter(prefix="/v1/models", tags=["statistics"], route_class=QueryRoute)

Side = Annotated[
    str | None, Field(pattern="^(before|after|identity|residual|sum)$", description="one side alone; all where it is not given")
]


class StatisticsQuery(BaseModel):
    """Parameters of the statistics over traffic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: str = Field(default="*", max_length=MAX_PATTERN_LENGTH, description=LAYERS_HELP)
    since: str = Field(default="-1d", max_length=64, description=f"first window: {MOMENT_HELP}")
    until: str = Field(default="now", max_length=64, description="end, likewise")
    step: str | None = Field(
        default=None, max_length=16, description="duration such as 5m, 1h or 1d: adds a series; totals alone without it"
    )
    side: Side = None
    quantiles: str = Field(default="", max_length=200, description="ranks between 0 and 1, with commas, such as 0.05,0.5,0.95")
    version: str | None = Field(default=None, description="of the model; the newest where it is not given")


@router.get(
    "/{model}/statistics",
    response_model=TrafficAnswer,
    responses={
        200: {"content": {CSV: {"schema": {"type": "string"}}, ARROW: {}, PARQUET: {}}},
        **documented_errors(404, 406, 422, 503),
    },
)
def traffic_statistics(
    request: Request,
    model: str,
    query: Annotated[StatisticsQuery, Query()],
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,  # OpenAPI names media types, not the header
) -> Response:
    """Statistics of every layer over the sampled traffic, from the windows that reach into the time from `since` to `until`."""
    state = State.of(request)
    kind = negotiate(accept)
    served = state.repository.get(model, query.version)
    now = time.time()
    since, until = parse_range(query.since, query.until, now)
    step_s = None if query.step is None else parse_step(query.step, state.settings.statistics_window_s)
    choice = Choice.of(served.manifest, query.layers, query.side, parse_ranks(query.quantiles))
    period = state.statistics.history.read(served.traffic, since, until, sketches=bool(choice.ranks), step_s=step_s)
    choice.check_size(0 if step_s is None else len(period.steps(step_s)), state.settings.max_statistics_values)
    if kind != JSON:
        return table_answer(kind, table(period, choice, step_s))
    return json_answer(
        {
            "model": served.manifest.name,
            "version": served.manifest.version,
            "since": iso(period.since),
            "until": iso(period.until),
            "complete": period.complete,
            "requests": period.requests,
            "sampled": period.sampled,
            "quantiles": list(choice.ranks),
            "layers": totals(period, choice),
            "series": None if step_s is None else {"step_s": step_s, **series(period, choice, step_s)},
        }
    )


def parse_ranks(text: str) -> list[float]:
    """The ranks of quantiles, rising, each once.

    Raises:
        InvalidRequestError: one is no number between 0 and 1.
    """
    try:
        ranks = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        ranks = [-1.0]
    if not all(0 <= rank <= 1 for rank in ranks):
        raise InvalidRequestError(
            f"quantiles: {text!r} are no ranks", value=text, limit="numbers from 0 to 1", remedy="write 0.05,0.5,0.95"
        )
    return ranks
