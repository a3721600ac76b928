"""POST /v1/models/{model}/predict: a photo or a text in, labels and layer statistics out."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from models.artifact import Layer
from service.api.answers import documented_errors, json_answer
from service.api.bodies import read_inputs
from service.api.layers import MAX_PATTERN_LENGTH, choose_layers
from service.api.schemas import JsonInputs, Level, PredictAnswer
from service.engine.model import Prediction, ServedModel
from service.errors import TooManyValuesError
from service.state import State

_STATISTICS = 9  # of one side, see SideStatistics
_CHANNEL_STATISTICS = 8  # all but count
_PAIR_STATISTICS = 2  # residual_ratio and cosine of an add

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
    responses=documented_errors(404, 413, 415, 422, 429, 503),
    openapi_extra=_BODY,
)
async def predict(
    request: Request,
    model: str,
    top_k: Annotated[int, Query(ge=1, description="how many labels; at most as many as the model has")] = 5,
    statistics: Annotated[Level, Query(description="how much to return of every layer")] = "none",
    layers: Annotated[
        str, Query(max_length=MAX_PATTERN_LENGTH, description="glob over layer names, or several with commas; for `statistics`")
    ] = "*",
) -> Response:
    """Predicts every input of the request; with `statistics`, shows what happened inside the model."""
    state = State.of(request)
    served = state.repository.get(model)
    chosen = choose_layers(served.manifest.layers, layers, model)
    inputs = await read_inputs(request, served.manifest, state.settings)
    _check_values(len(inputs), chosen, statistics, state.settings.max_statistics_values)
    predictions, timing = await served.predict(inputs, statistics=statistics != "none")
    state.metrics.observe_inference(served.manifest.name, len(inputs), timing)
    return json_answer(
        {
            "model": served.manifest.name,
            "version": served.manifest.version,
            "predictions": [_describe(served, prediction, top_k, chosen, statistics) for prediction in predictions],
            "timing": {
                "preprocess_ms": round(timing.preprocess_ms, 3),
                "queue_ms": round(timing.queue_ms, 3),
                "inference_ms": round(timing.inference_ms, 3),
            },
        }
    )


def _describe(served: ServedModel, prediction: Prediction, top_k: int, layers: list[Layer], level: Level) -> dict[str, Any]:
    labels = served.manifest.labels
    best = np.argsort(-prediction.scores, kind="stable")[:top_k].tolist()
    described: dict[str, Any] = {
        "labels": [{"label": labels[i], "score": float(prediction.scores[i])} for i in best],
        "truncated": prediction.truncated,
    }
    if prediction.statistics is not None:
        described["layers"] = prediction.statistics.describe(layers, channels=level == "channels")
    return described


def _check_values(count: int, layers: list[Layer], level: Level, limit: int) -> None:
    if level == "none":
        return
    values = 0
    for layer in layers:
        sides = len(layer.tensors)
        values += sides * _STATISTICS + (_PAIR_STATISTICS if layer.kind == "residual_add" else 0)
        extent = layer.shape[layer.channel_axis] if layer.shape else None
        if level == "channels" and isinstance(extent, int):
            values += sides * _CHANNEL_STATISTICS * extent
    values *= count
    if values > limit:
        raise TooManyValuesError(
            f"the answer would hold {values} statistics, more than {limit}",
            value=values,
            limit=limit,
            remedy="choose fewer layers with layers=, send fewer inputs, or raise NORMSCOPE_MAX_STATISTICS_VALUES",
        )
