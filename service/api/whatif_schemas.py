"""The JSON of what-if requests and answers as pydantic models; each way to change a layer is one model."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from service.api.layers import MAX_PATTERN_LENGTH
from service.api.schemas import LabelScore, LayerStatistics

MOST_CHANGES = 100
_LARGEST = 1e6
DEFAULT_GROUPS = 32  # Wu & He 2018, table 3

Factor = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]

_EXAMPLE: dict[str, Any] = {
    "inputs": "what is my account balance",
    "changes": [
        {"layer": "blocks.1.feed_forward_norm.add", "residual_scale": 0},
        {"layer": "blocks.0.*", "gamma_scale": 1.5},
        {"layer": "embedding_norm", "normalization": "none"},
    ],
}
_SIDE: dict[str, Any] = {
    "count": 1024,
    "mean": 0.0,
    "var": 1.0,
    "std": 1.0,
    "min": -3.1,
    "max": 3.3,
    "l2": 32.0,
    "zeros": 0.0,
    "nonfinite": 0,
}
_ORIGINAL: dict[str, Any] = {
    "labels": [{"label": "balance", "score": 0.93}],
    "layers": [{"layer": "blocks.0.attention_norm", "kind": "layer_norm", "before": _SIDE, "after": _SIDE}],
}
_CHANGED: dict[str, Any] = _ORIGINAL | {"labels": [{"label": "balance", "score": 0.71}]}
_PREDICTION: dict[str, Any] = {"truncated": False, "original": _ORIGINAL, "changed": _CHANGED}


class _LayerChange(BaseModel):
    # strict: "2" is no number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra={"minProperties": 2})

    layer: str = Field(max_length=MAX_PATTERN_LENGTH, description="glob over layer names, or several with commas")

    @model_validator(mode="after")
    def _changes_something(self) -> "_LayerChange":
        if self.model_fields_set == {"layer"}:
            raise ValueError("a change needs a layer and what to change there")
        return self


class ParameterChange(_LayerChange):
    """gamma * gamma_scale + gamma_shift, and beta likewise, at the normalizations among the layers."""

    gamma_scale: Factor = 1
    gamma_shift: Factor = 0
    beta_scale: Factor = 1
    beta_shift: Factor = 0


class BranchChange(_LayerChange):
    """x * identity_scale + F(x) * residual_scale at the residual adds among the layers; 0 removes a branch."""

    residual_scale: Factor = 1
    identity_scale: Factor = 1


class FormulaChange(_LayerChange):
    """Another formula at the normalizations among the layers, on the same activations; `none` keeps gamma and beta alone."""

    normalization: Literal["batch", "layer", "none"]


class GroupChange(_LayerChange):
    """Group normalization at the normalizations among the layers."""

    normalization: Literal["group"]
    groups: int = Field(default=DEFAULT_GROUPS, ge=1, le=1 << 20, description="must divide the channels")


def _kind(change: Any) -> str:
    keys = set(change) if isinstance(change, dict) else set()
    if "normalization" in keys or "groups" in keys:
        return "formula" if change.get("normalization") in ("batch", "layer", "none") else "group"
    return "branch" if keys & set(BranchChange.model_fields) - {"layer"} else "parameters"


LayerChange = Annotated[
    Annotated[ParameterChange, Tag("parameters")]
    | Annotated[BranchChange, Tag("branch")]
    | Annotated[FormulaChange, Tag("formula")]
    | Annotated[GroupChange, Tag("group")],
    Discriminator(_kind),
]
Changes = Annotated[list[LayerChange], Field(min_length=1, max_length=MOST_CHANGES)]


class WhatIfBody(BaseModel):
    """Inputs as for a prediction (texts, or images as base64), and what to change; later changes add to earlier ones."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _EXAMPLE})

    inputs: str | list[str]
    changes: Changes


def body_schema() -> dict[str, Any]:
    """The JSON schema of `WhatIfBody` without references, whose targets a request body in the document cannot bring along."""
    schema = WhatIfBody.model_json_schema()
    definitions = schema.pop("$defs")

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolved(definitions[part["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in part.items()}

    return {key: resolved(value) for key, value in schema.items()}


class WhatIfSide(BaseModel):
    """What the model says, and what its layers do meanwhile."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _ORIGINAL})

    labels: list[LabelScore] = Field(description="the best first")
    layers: list[LayerStatistics] = Field(description="of a scaled residual add the sides are those that are added")


class WhatIfPrediction(BaseModel):
    """The outcome for one input without and with the changes."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _PREDICTION})

    truncated: bool = Field(description="the text was longer than the model reads and was cut")
    original: WhatIfSide
    changed: WhatIfSide


class WhatIfTiming(BaseModel):
    """Where the time went, in milliseconds."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"total_ms": 12.5}})

    total_ms: float = Field(description="decoding, both runs and both statistics; also opening the graph, where that was needed")


class WhatIfAnswer(BaseModel):
    """One comparison for each input, in the order of the inputs."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "encoder",
                "version": "1",
                "changed_layers": [["blocks.1.feed_forward_norm.add"], ["blocks.0.attention_norm"], ["embedding_norm"]],
                "predictions": [_PREDICTION],
                "timing": {"total_ms": 12.5},
            }
        },
    )

    model: str
    version: str
    changed_layers: list[list[str]] = Field(description="of each change, the layers that it was made at")
    predictions: list[WhatIfPrediction]
    timing: WhatIfTiming
