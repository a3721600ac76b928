"""GET /v1/models/{model}/drift: whether the traffic still looks like the reference, since when it does not, and where."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from models.statistics.drift import LEAST_REQUESTS, Levels, State
from models.statistics.layers import SideLayout
from service.api.answers import documented_errors, json_answer
from service.api.query_route import QueryRoute
from service.api.timerange import iso
from service.drift import Change
from service.errors import NoReferenceError
from service.state import State as AppState
from service.statistics.drift import MAX_VERDICTS, Affected, DriftStatus, Verdict, affected_layers, by_significance
from service.webhook import Alert

router = APIRouter(prefix="/v1/models", tags=["statistics"], route_class=QueryRoute)

_SHOWN_LAYERS = 10
_LEVELS: dict[str, Any] = {"warning": 0.00069, "drift": 0.000023}
_VERDICT: dict[str, Any] = {
    "since": "2026-05-04T10:00:00Z",
    "until": "2026-05-04T10:01:00Z",
    "requests": 1200,
    "sampled": 120,
    "state": "drift",
    "score": 21.4,
}
_AFFECTED: dict[str, Any] = {
    "layer": "layer1.0.bn1",
    "side": "before",
    "statistic": "request_std",
    "change": "lower",
    "effect": -1.4,
    "spread": 3.1,
    "p_value": 4e-22,
}
_ANSWER: dict[str, Any] = {
    "model": "resnet50",
    "version": "1",
    "state": "drift",
    "since": "2026-05-04T09:12:00Z",
    "score": 21.4,
    "window": _VERDICT,
    "collected": 0,
    "least_requests": LEAST_REQUESTS,
    "reference_samples": 1000,
    "false_alarms_per_month": 1.0,
    "levels": _LEVELS,
    "undefined": 0,
    "first_layer": _AFFECTED,
    "layers": [_AFFECTED],
    "history": [_VERDICT],
}


class DriftQuery(BaseModel):
    """Parameters of the drift."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(default=60, ge=0, le=MAX_VERDICTS, description="most windows in `history`, the newest")
    version: str | None = Field(default=None, description="of the model; the newest where it is not given")


class DriftWindow(BaseModel):
    """One window, or several that have enough sampled requests only together."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _VERDICT})

    since: str = Field(description="ISO 8601, UTC")
    until: str
    requests: int = Field(description="inputs served")
    sampled: int = Field(description="of these, inputs that were compared with the reference")
    state: State
    score: float | None = Field(description="-log10 of the p-value of the window over all layers together; null if unknown")


class AffectedLayer(BaseModel):
    """The statistic of a layer that stands out most."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _AFFECTED})

    layer: str
    side: str | None = Field(description="null for residual_ratio and cosine")
    statistic: Literal["request_mean", "request_std", "l2", "residual_ratio", "cosine"]
    change: Literal["higher", "lower", "wider", "narrower", "undefined"] = Field(
        description="of the values of single inputs; undefined: NaN or infinities"
    )
    effect: float | None = Field(description="mean normal score: about the number of standard deviations of the reference moved by")
    spread: float | None = Field(description="mean square of the normal scores against the reference; above 1 wider or moved")
    p_value: float = Field(description="corrected for all tests of the window (Bonferroni)")


class DriftLevels(BaseModel):
    """P-values of a window at and below which its state is no longer ok."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _LEVELS})

    warning: float
    drift: float


class DriftAnswer(BaseModel):
    """The drift of a model."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _ANSWER})

    model: str
    version: str
    state: State = Field(description="of the newest window; unknown before the first, or where an hour had too few sampled inputs")
    since: str = Field(description="begin of the unbroken run of this state; ISO 8601, UTC")
    score: float | None = Field(description="of the newest window; null if unknown")
    window: DriftWindow | None = Field(description="the newest; null before the first")
    collected: int = Field(description="sampled inputs since then")
    least_requests: int = Field(description="windows are put together until they hold so many sampled inputs")
    reference_samples: int
    false_alarms_per_month: float = Field(description="false `drift` states to be expected in 30 days")
    levels: DriftLevels
    undefined: int = Field(description="inputs of the newest window with NaN or infinities anywhere")
    first_layer: AffectedLayer | None = Field(description="the earliest in the network that is affected; null if none is")
    layers: list[AffectedLayer] = Field(description="those that are affected most, 10 at most, the most significant first")
    history: list[DriftWindow] = Field(description="the newest last")


@router.get("/{model}/drift", response_model=DriftAnswer, responses=documented_errors(404, 409, 422, 503))
def drift(request: Request, model: str, query: Annotated[DriftQuery, Query()]) -> Response:
    """Whether windows of traffic differ from the reference by more than chance, since when, and in which layers."""
    state = AppState.of(request)
    served = state.repository.get(model, query.version)
    if served.ranks is None:
        raise NoReferenceError(
            f"{served.manifest.name} has no reference",
            value=served.manifest.name,
            limit="models with a reference",
            remedy="make one with `python -m models reference` and load the model again",
        )
    status = state.drift.status(served)
    return json_answer(
        {
            "model": served.manifest.name,
            "version": served.manifest.version,
            **_described(status, served.layout, state.drift.levels),
            "collected": status.collected,
            "least_requests": LEAST_REQUESTS,
            "reference_samples": served.ranks.samples,
            "false_alarms_per_month": state.settings.drift_false_alarms_per_month,
            "levels": vars(state.drift.levels),
            "history": [_window(each) for each in status.verdicts[len(status.verdicts) - query.limit :]] if query.limit else [],
        }
    )


def alert(change: Change) -> Alert:
    """What the webhook is told."""
    served = change.served
    body = {
        "id": change.name,
        "model": served.manifest.name,
        "version": served.manifest.version,
        "previous": change.previous,
        **_described(change.status, served.layout, change.levels),
    }
    return Alert(change.name, body)


def _described(status: DriftStatus, layout: SideLayout, levels: Levels) -> dict[str, Any]:
    newest, test = status.verdicts[-1] if status.verdicts else None, status.test
    affected = [] if test is None else affected_layers(test, layout, levels.warning)
    return {
        "state": status.state,
        "since": iso(status.since),
        "score": None if newest is None else newest.score,
        "window": None if newest is None else _window(newest),
        "undefined": 0 if test is None else test.undefined,
        "first_layer": _layer(affected[0]) if affected else None,
        "layers": [_layer(each) for each in sorted(affected, key=by_significance)[:_SHOWN_LAYERS]],
    }


def _window(verdict: Verdict) -> dict[str, Any]:
    return {**vars(verdict), "since": iso(verdict.since), "until": iso(verdict.until)}


def _layer(each: Affected) -> dict[str, Any]:
    return vars(each)  # NaN becomes null
