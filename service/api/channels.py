"""GET /v1/models/{model}/statistics/channels: the statistics of every channel of chosen layers over traffic."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from models.statistics.moments import Floats
from service.api.answers import documented_errors, json_answer
from service.api.layers import MAX_PATTERN_LENGTH
from service.api.query import LAYERS_HELP
from service.api.query_route import QueryRoute
from service.api.statistics import Side
from service.api.timerange import MOMENT_HELP, iso, parse_range
from service.api.traffic import Choice
from service.api.traffic_schemas import ChannelsAnswer
from service.errors import TooManyValuesError
from service.state import State
from service.statistics.channels import ChannelMoments
from service.statistics.columns import element_columns

router = APIRouter(prefix="/v1/models", tags=["statistics"], route_class=QueryRoute)

_MEASURES = ("count", "mean", "var", "std", "min", "max", "zeros", "nonfinite")


class ChannelsQuery(BaseModel):
    """Parameters of the statistics of channels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: str = Field(max_length=MAX_PATTERN_LENGTH, description=LAYERS_HELP)
    since: str = Field(default="-1d", max_length=64, description=f"first hour: {MOMENT_HELP}")
    until: str = Field(default="now", max_length=64, description="end, likewise")
    side: Side = None
    version: str | None = Field(default=None, description="of the model; the newest where it is not given")


@router.get("/{model}/statistics/channels", response_model=ChannelsAnswer, responses=documented_errors(404, 422, 503))
def channel_statistics(request: Request, model: str, query: Annotated[ChannelsQuery, Query()]) -> Response:
    """Statistics of every channel of the chosen layers, from the hours that reach into the time from `since` to `until`, beside the
    mean and variance that are known of the reference and of training.
    """
    state = State.of(request)
    served = state.repository.get(model, query.version)
    since, until = parse_range(query.since, query.until, time.time())
    choice = Choice.of(served.manifest, query.layers, query.side)
    period = state.statistics.history.read_channels(served.traffic, since, until)
    row_of = served.layout.row_of
    reference = {} if served.reference is None else served.reference.moments_of(served.layout)
    training = {(layer, "before"): moments for layer, moments in served.running.items()}

    def described(layer: str, side: str) -> dict[str, Any]:
        shown = {"reference": reference.get((layer, side)), "training": training.get((layer, side))}
        return _described(period.moments, row_of[layer, side]) | {name: _mean_and_var(moments) for name, moments in shown.items()}

    if period.moments is not None:
        rows = [row_of[layer.layer, side] for layer, side in choice.rows]
        _check_size(period.moments, rows, state.settings.max_statistics_values)
    return json_answer(
        {
            "model": served.manifest.name,
            "version": served.manifest.version,
            "since": iso(period.since),
            "until": iso(period.until),
            "complete": period.complete,
            "sampled": period.sampled,
            "layers": [
                {"layer": layer.layer, "kind": layer.kind} | {side: described(layer.layer, side) for side in choice.sides(layer)}
                for layer in choice.layers
            ],
        }
    )


def _check_size(moments: ChannelMoments, rows: Sequence[int], limit: int) -> None:
    numbers = len(_MEASURES) * sum(moments.row(row).count.size for row in rows)
    TooManyValuesError.check(numbers, limit, "choose fewer layers or one side")


def _mean_and_var(moments: tuple[Floats, Floats] | None) -> dict[str, list[float]] | None:
    return None if moments is None else {"mean": moments[0].tolist(), "var": moments[1].tolist()}


def _described(moments: ChannelMoments | None, row: int) -> dict[str, list[Any]]:
    """A list by channel of each measure; empty where nothing was sampled."""
    if moments is None:
        return {name: [] for name in _MEASURES}
    columns = element_columns(moments.row(row))
    columns |= {name: columns[name].astype(np.int64) for name in ("count", "nonfinite")}
    return {name: columns[name].tolist() for name in _MEASURES}
