"""POST /v1/models/{model}/whatif: inputs and changes of the model in, predictions and statistics without and with them out."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError

from models.artifact import Layer
from service.api.answers import documented_errors, json_answer
from service.api.inputs import read_json_inputs
from service.api.layers import choose_layers
from service.api.predict import check_values, describe_labels
from service.api.query import InputsQuery, documented_query, read_query
from service.api.whatif_schemas import (
    BranchChange,
    Changes,
    FormulaChange,
    GroupChange,
    LayerChange,
    ParameterChange,
    WhatIfAnswer,
    body_schema,
)
from service.engine import changes as engine
from service.engine.interior import DescribedOutcome
from service.errors import InvalidRequestError
from service.state import State

_CHANGES: TypeAdapter[list[LayerChange]] = TypeAdapter(Changes)
_RESIDUAL_ADD = "residual_add"

router = APIRouter(prefix="/v1/models", tags=["predict"])


@router.post(
    "/{model}/whatif",
    response_model=WhatIfAnswer,
    responses=documented_errors(404, 408, 409, 413, 415, 422, 429, 501, 503, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body_schema()}},
        },
        "parameters": documented_query(InputsQuery),
    },
)
async def what_if(request: Request, model: str) -> Response:
    """Predicts every input twice: as the model is, and with other gammas and betas, scaled branches or other normalizations."""
    start = time.perf_counter()
    state = State.of(request)
    query = read_query(request, InputsQuery)
    with state.repository.reserve(model, query.version) as served:
        manifest = served.manifest
        chosen = choose_layers(manifest.layers, query.layers, model)
        inputs, listed = await read_json_inputs(request, manifest, state.settings, "changes")
        changes = [_located(change, manifest.layers, model) for change in _read_changes(listed)]
        check_values(2 * len(inputs), chosen, "summary", state.settings.max_statistics_values)
        timeout_s = query.timeout_s(state.settings.request_timeout_s) - (time.perf_counter() - start)
        comparisons = await served.interior.what_if(inputs, changes, chosen, timeout_s)
    describe = partial(_describe, manifest.labels, query.top_k)
    predictions = await state.encode(
        lambda: [
            {"truncated": each.original.outcome.truncated, "original": describe(each.original), "changed": describe(each.changed)}
            for each in comparisons
        ]
    )
    return json_answer(
        {
            "model": manifest.name,
            "version": manifest.version,
            "changed_layers": [[layer.layer for layer in change.layers] for change in changes],
            "predictions": predictions,
            "timing": {"total_ms": round((time.perf_counter() - start) * 1000, 3)},
        }
    )


def _describe(labels: list[str], top_k: int, described: DescribedOutcome) -> dict[str, Any]:
    # each layer by itself: orjson keeps the interpreter to itself while it works
    layers = [orjson.Fragment(orjson.dumps(layer)) for layer in described.layers]
    return {"labels": describe_labels(labels, top_k, described.outcome), "layers": layers}


def _read_changes(listed: Any) -> list[LayerChange]:
    """The changes of a body.

    Raises:
        InvalidRequestError: one is not what the schema allows.
    """
    try:
        return _CHANGES.validate_python(listed)
    except ValidationError as error:
        first = error.errors()[0]
        tags = ("parameters", "branch", "formula", "group")
        where = ".".join(["changes", *(str(part) for part in first["loc"] if part not in tags)])
        says = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(
            f"{where}: {says}", value=first["input"], limit=says, remedy="correct the change; see /docs"
        ) from None


def _located(change: LayerChange, layers: Sequence[Layer], model: str) -> engine.Change:
    """The change with the layers that it is made at: those of its glob that have what it changes.

    Raises:
        UnknownLayerError: no layer matches.
        InvalidRequestError: none of those that match has what is to be changed, or the groups do not divide its channels.
    """
    matching = choose_layers(layers, change.layer, model)
    match change:
        case BranchChange():
            adds = _those(matching, lambda layer: layer.kind == _RESIDUAL_ADD, change.layer, "is a residual add", model)
            return engine.BranchChange(adds, change.residual_scale, change.identity_scale)
        case ParameterChange():
            fields = change.model_fields_set
            changes_gamma, changes_beta = ({f"{name}_scale", f"{name}_shift"} & fields for name in ("gamma", "beta"))
            parts = " and ".join(name for name, changed in (("gamma", changes_gamma), ("beta", changes_beta)) if changed)
            norms = _those(
                matching,
                lambda layer: not (changes_gamma and layer.gamma is None) and not (changes_beta and layer.beta is None),
                change.layer,
                f"has a constant {parts}",
                model,
            )
            return engine.ParameterChange(norms, change.gamma_scale, change.gamma_shift, change.beta_scale, change.beta_shift)
        case FormulaChange() | GroupChange():
            norms = _those(matching, lambda layer: layer.kind != _RESIDUAL_ADD, change.layer, "is a normalization", model)
            groups = change.groups if isinstance(change, GroupChange) else 0
            for layer in norms:
                _check_groups(layer, groups)
            return engine.NormalizationChange(norms, change.normalization, groups)


def _those(layers: Sequence[Layer], has: Callable[[Layer], bool], pattern: str, what: str, model: str) -> tuple[Layer, ...]:
    found = tuple(layer for layer in layers if has(layer))
    if not found:
        raise InvalidRequestError(
            f"no layer that matches {pattern!r} {what}",
            value=pattern,
            limit=f"a layer that {what}",
            remedy=f"GET /v1/models/{model}/layers lists the layers and their kinds",
        )
    return found


def _check_groups(layer: Layer, groups: int) -> None:
    if groups and layer.channels is not None and layer.channels % groups:
        raise InvalidRequestError(
            f"groups: {groups} groups do not divide the {layer.channels} channels of {layer.layer}",
            value=groups,
            limit=f"a divisor of {layer.channels}",
            remedy="choose a number that divides the channels of every chosen layer",
        )
