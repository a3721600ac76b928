"""POST /v1/models/{model}/predict: a photo or a text in, labels and layer statistics out."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from models.artifact import Layer, Manifest
from models.statistics.anomaly import AnomalyScorer
from models.statistics.distribution import VALUES
from service.api.anomaly import describe_anomalies, scorer_of
from service.api.answers import documented_errors, json_answer
from service.api.inputs import read_inputs
from service.api.layers import choose_layers
from service.api.query import PredictQuery, documented_query, read_query
from service.api.schemas import JsonInputs, PredictAnswer, PredictLevel
from service.engine.interior import Stages
from service.engine.model import Timing
from service.engine.outcomes import Outcome
from service.errors import InvalidRequestError, TooManyValuesError
from service.state import State

_STATISTICS = 9  # of one side, see SideStatistics
_CHANNEL_STATISTICS = 8  # all but count
_PAIR_STATISTICS = 2  # residual_ratio and cosine of an add
_MOST_IN_FULL = 16  # layers with histograms: each costs as much time as the rest of a small request

_LONG = ("channels", "histogram")  # whose answers hold up to a million numbers

_BODY = {
    "requestBody": {
        "required": True,
        "description": "Image models: a file, `image` parts, or base64 in JSON. Text models: JSON.",
        "content": {
            "application/json": {"schema": JsonInputs.model_json_schema()},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}

router = APIRouter(prefix="/v1/models", tags=["predict"])


@router.post(
    "/{model}/predict",
    response_model=PredictAnswer,
    responses=documented_errors(404, 408, 409, 413, 415, 422, 429, 501, 503, 504),
    openapi_extra=_BODY | {"parameters": documented_query(PredictQuery)},
)
async def predict(request: Request, model: str) -> Response:
    """Predicts every input of the request; with `statistics`, shows what happened inside the model."""
    state = State.of(request)
    query = read_query(request, PredictQuery)
    with state.repository.reserve(model, query.version) as served:
        manifest = served.manifest
        scorer = await run_in_threadpool(scorer_of, served) if query.anomaly else None
        everything = query.statistics == "none" and query.layers == "*"  # then nothing reads the choice
        chosen = [] if everything else choose_layers(manifest.layers, query.layers, model)
        inputs = await read_inputs(request, manifest, state.settings)
        check_values(len(inputs), chosen, query.statistics, state.settings.max_statistics_values)
        timeout_s, stages_s = query.timeout_s(state.settings.request_timeout_s), 0.0
        stages: list[Stages] | None = None
        if query.statistics == "histogram":
            _check_choice(query, chosen)
            start = time.perf_counter()
            stages = await served.interior.stages(inputs, chosen, timeout_s)
            stages_s = time.perf_counter() - start
        outcomes, timing = await served.predict(
            inputs,
            statistics=query.statistics != "none" or scorer is not None,
            channels=query.statistics == "channels" or (scorer is not None and scorer.needs_channels),
            timeout_s=max(timeout_s - stages_s, 0),
        )
    state.observe_inference(manifest.name, timing)
    if query.statistics == "none" and scorer is None:
        return _answer(manifest, query, chosen, outcomes, timing, stages, stages_s, scorer)
    answer = partial(_answer, manifest, query, chosen, outcomes, timing, stages, stages_s, scorer)
    return await state.encode(answer) if query.statistics in _LONG else await run_in_threadpool(answer)


def _answer(
    manifest: Manifest,
    query: PredictQuery,
    layers: list[Layer],
    outcomes: Sequence[Outcome],
    timing: Timing,
    stages: Sequence[Stages] | None,
    stages_s: float,
    scorer: AnomalyScorer | None,
) -> Response:
    return json_answer(
        {
            "model": manifest.name,
            "version": manifest.version,
            "predictions": _describe_all(manifest.labels, query, layers, outcomes, stages, scorer),
            "timing": {
                "preprocess_ms": _ms(timing.input_ns),
                "queue_ms": _ms(timing.queue_ns),
                "inference_ms": _ms(timing.infer_ns + timing.output_ns),
                **({} if stages is None else {"stages_ms": round(stages_s * 1000, 3)}),
            },
        }
    )


def _ms(ns: int) -> float:
    """Milliseconds with three digits; `round` would take ten times as long."""
    return ns // 1000 / 1000


def _describe_all(
    labels: list[str],
    query: PredictQuery,
    layers: list[Layer],
    outcomes: Sequence[Outcome],
    stages: Sequence[Stages] | None,
    scorer: AnomalyScorer | None,
) -> list[dict[str, Any]]:
    of_each: Sequence[Stages | None] = stages or [None] * len(outcomes)
    described = [_describe(labels, query, layers, *each) for each in zip(outcomes, of_each, strict=True)]
    if scorer is not None:
        for prediction, anomaly in zip(described, describe_anomalies(scorer, outcomes), strict=True):
            prediction["anomaly"] = anomaly
    return described


def _describe(
    labels: list[str], query: PredictQuery, layers: list[Layer], outcome: Outcome, stages: Stages | None
) -> dict[str, Any]:
    described: dict[str, Any] = {"labels": describe_labels(labels, query.top_k, outcome), "truncated": outcome.truncated}
    if outcome.statistics is not None and query.statistics != "none":
        layer_statistics = outcome.statistics.describe(layers, channels=query.statistics == "channels")
        for layer in layer_statistics:
            for side, in_full in (stages or {}).get(layer["layer"], {}).items():
                layer[side] = layer.get(side, {}) | in_full
        # each layer by itself: orjson keeps the interpreter to itself while it works
        described["layers"] = [orjson.Fragment(orjson.dumps(layer)) for layer in layer_statistics]
    return described


def describe_labels(labels: list[str], top_k: int, outcome: Outcome) -> list[dict[str, Any]]:
    """The best labels with their scores; none of a model that scores nothing."""
    if outcome.scores is None or outcome.ranking is None:
        return []
    scores = outcome.scores
    return [{"label": labels[i], "score": scores.item(i)} for i in outcome.ranking[:top_k].tolist()]


def check_values(count: int, layers: list[Layer], level: PredictLevel, limit: int) -> None:
    """Bounds the size of an answer on so many inputs.

    Raises:
        TooManyValuesError: it would hold more than `limit` statistics.
    """
    if level == "none":
        return
    values = 0
    for layer in layers:
        sides = len(layer.tensors)
        values += sides * _STATISTICS + (_PAIR_STATISTICS if layer.kind == "residual_add" else 0)
        if level == "channels":
            values += sides * _CHANNEL_STATISTICS * (layer.channels or 0)
        if level == "histogram":
            values += sides * VALUES + (_STATISTICS + VALUES if layer.kind != "residual_add" else 0)
    TooManyValuesError.check(values * count, limit, "choose fewer layers with layers=, send fewer inputs")


def _check_choice(query: PredictQuery, layers: list[Layer]) -> None:
    """Histograms are for few layers, which the request must name."""
    if "layers" in query.model_fields_set and len(layers) <= _MOST_IN_FULL:
        return
    named = "layers" in query.model_fields_set
    raise InvalidRequestError(
        f"statistics=histogram for {len(layers)} layers" if named else "statistics=histogram without layers=",
        value=len(layers),
        limit=f"{_MOST_IN_FULL} layers",
        remedy=f"choose at most {_MOST_IN_FULL} layers with layers=, a glob or several with commas",
    )
