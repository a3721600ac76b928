"""GET /v1/models/{model}/statistics/compare: two stretches of time beside each other, what differs most first."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from models.statistics.moments import Floats, Moments
from service.api.answers import documented_errors, json_answer
from service.api.layers import MAX_PATTERN_LENGTH
from service.api.query import LAYERS_HELP
from service.api.query_route import QueryRoute
from service.api.statistics import Side
from service.api.timerange import MOMENT_HELP, iso, parse_range
from service.api.traffic import Choice
from service.api.traffic_schemas import ComparisonAnswer
from service.engine.model import ServedModel
from service.errors import InvalidRequestError, NoReferenceError
from service.state import State
from service.statistics.comparison import Comparison, compare
from service.statistics.history import Period
from service.statistics.sketches import Sketches
from service.statistics.window import single_values

router = APIRouter(prefix="/v1/models", tags=["statistics"], route_class=QueryRoute)

_WINDOW_HELP = f"SINCE..UNTIL, such as -2h..-1h; each is {MOMENT_HELP}"
_REFERENCE = "reference"
_B_HELP = f"{_WINDOW_HELP}; or `reference`: data like those of training, stored with the model"
_MEASURES = ("mean_a", "mean_b", "effect", "effect_low", "effect_high", "variance_ratio", "divergence", "stability", "wasserstein")


class CompareQuery(BaseModel):
    """Parameters of a comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    a: str = Field(max_length=130, description=f"what is compared: {_WINDOW_HELP}")
    b: str = Field(max_length=130, description=f"with what: {_B_HELP}")
    layers: str = Field(default="*", max_length=MAX_PATTERN_LENGTH, description=LAYERS_HELP)
    side: Side = None
    version: str | None = Field(default=None, description="of the model; the newest where it is not given")


@router.get("/{model}/statistics/compare", response_model=ComparisonAnswer, responses=documented_errors(404, 409, 422, 503))
def compare_statistics(request: Request, model: str, query: Annotated[CompareQuery, Query()]) -> Response:
    """How the values of single requests differ between two stretches of time: one entry for each layer, side and statistic."""
    state = State.of(request)
    served = state.repository.get(model, query.version)
    choice = Choice.of(served.manifest, query.layers, query.side)
    quantities = choice.quantities(served.traffic.series)
    now = time.time()

    def read(text: str, name: str) -> _Compared:
        since, until = _parse_window(text, now, name)
        period = state.statistics.history.read(served.traffic, since, until, sketches=True)
        return _Compared.of_period(period, quantities)

    b = _Compared.of_reference(served, quantities) if query.b == _REFERENCE else read(query.b, "b")
    a = read(query.a, "a")
    measured = compare(a.values, b.values, a.sketches, b.sketches)
    return json_answer(
        {
            "model": served.manifest.name,
            "version": served.manifest.version,
            "a": a.described,
            "b": b.described,
            "differences": _sorted(choice.names(), measured),
        }
    )


@dataclass(frozen=True)
class _Compared:
    """The chosen quantities of one side, and how the answer tells of it."""

    values: Moments
    sketches: Sketches
    described: dict[str, Any]

    @classmethod
    def of_period(cls, period: Period, quantities: list[int]) -> Self:
        values = period.total().values
        chosen = Moments(*(column[quantities] for column in vars(values).values()))
        return cls(chosen, period.sketches(quantities), _described(period))

    @classmethod
    def of_reference(cls, served: ServedModel, quantities: list[int]) -> Self:
        if served.reference is None or served.reference_sketches is None:
            raise NoReferenceError(
                f"{served.manifest.name} has no reference",
                value=_REFERENCE,
                limit=_WINDOW_HELP,
                remedy="make one with `python -m models reference` and load the model again, or compare with a window: -2h..-1h",
            )
        values = single_values(served.reference.values[:, quantities].astype(np.float64)).pool(axis=0)
        described = {"reference": True, "samples": len(served.reference)}
        return cls(values, served.reference_sketches.choose(quantities), described)


def _parse_window(text: str, now: float, name: str) -> tuple[float, float]:
    since, separator, until = text.partition("..")
    if not separator:
        raise InvalidRequestError(
            f"{name}: {text!r} is no stretch of time",
            value=text,
            limit=_B_HELP if name == "b" else _WINDOW_HELP,
            remedy="write -2h..-1h, or reference" if name == "b" else "write -2h..-1h",
        )
    return parse_range(since, until, now, name)


def _described(period: Period) -> dict[str, Any]:
    ends = {"since": iso(period.since), "until": iso(period.until)}
    return {**ends, "complete": period.complete, "requests": period.requests, "sampled": period.sampled}


def _sorted(names: list[tuple[str, str | None, str]], measured: Comparison) -> list[dict[str, Any]]:
    """The largest effect first; what is not known comes last."""
    size: Floats = np.where(np.isnan(measured.effect), -1, np.abs(measured.effect))
    columns = {name: getattr(measured, name).tolist() for name in _MEASURES}
    counts = {name: getattr(measured, name).astype(np.int64).tolist() for name in ("requests_a", "requests_b")}
    return [
        {
            "layer": names[i][0],
            "side": names[i][1],
            "statistic": names[i][2],
            **{name: column[i] for name, column in (counts | columns).items()},
        }
        for i in np.argsort(-size, kind="stable").tolist()
    ]
