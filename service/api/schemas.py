"""The JSON of the API as pydantic models, each with an example; what the pages under /docs show."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.artifact import ParameterSummary, Provenance, TensorSpec
from models.instrument.graph import Dimension
from models.instrument.probes import ProbeKind
from models.preprocessing import ImagePreprocessing, TextPreprocessing

Level = Literal["none", "summary", "channels"]

_SIDE_EXAMPLE: dict[str, Any] = {
    "count": 1024,
    "mean": 0.02,
    "var": 1.44,
    "std": 1.2,
    "min": -4.1,
    "max": 5.3,
    "l2": 38.4,
    "zeros": 0.0,
    "nonfinite": 0,
}
_LAYER_EXAMPLE: dict[str, Any] = {
    "layer": "blocks.0.attention_norm",
    "kind": "layer_norm",
    "before": _SIDE_EXAMPLE,
    "after": _SIDE_EXAMPLE | {"mean": 0.0, "var": 1.0, "std": 1.0, "l2": 32.0},
}


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Schema):
    """What is wrong, with the value, the limit and the remedy where they exist."""

    code: str = Field(description="kind of the error, stable")
    message: str = Field(description="a sentence for people")
    value: Any = Field(default=None, description="what was sent or found")
    limit: Any = Field(default=None, description="what is allowed")
    remedy: str = Field(description="what to do")


class ErrorAnswer(_Schema):
    """The one shape of every error under /v1."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "code": "unknown_model",
                    "message": "no model is named 'resnet'; GET /v1/models lists the models",
                    "value": "resnet",
                    "limit": ["encoder", "resnet50"],
                    "remedy": "GET /v1/models lists the models",
                }
            }
        }
    )

    error: ErrorDetail


class JsonInputs(_Schema):
    """The JSON body of a prediction: one text or base64-encoded image, or a list of them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"inputs": "what is my account balance"}})

    inputs: str | list[str]


class LabelScore(_Schema):
    """One label and its softmax probability."""

    label: str
    score: float


class SideStatistics(_Schema):
    """Statistics of the elements of one tensor for one input; null where `nonfinite` is above 0."""

    count: int = Field(description="elements; padding does not count")
    mean: float | None
    var: float | None = Field(description="population variance")
    std: float | None
    min: float | None
    max: float | None
    l2: float | None = Field(description="sqrt(sum of squares)")
    zeros: float | None = Field(description="fraction of exact zeros, 0..1")
    nonfinite: int = Field(description="number of NaN and infinities")
    channels: dict[str, list[float | int | None]] | None = Field(
        default=None, description="with statistics=channels: the same for each channel, except count"
    )


class LayerStatistics(_Schema):
    """A normalization (before, after) or a residual add (identity x, residual F(x), their sum before any activation)."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _LAYER_EXAMPLE})

    layer: str
    kind: ProbeKind
    before: SideStatistics | None = None
    after: SideStatistics | None = None
    identity: SideStatistics | None = None
    residual: SideStatistics | None = None
    sum: SideStatistics | None = None
    residual_ratio: float | None = Field(default=None, description="l2(F(x)) / l2(x); near 0 the block is an identity")
    cosine: float | None = Field(default=None, description="of F(x) and x")


class PredictionAnswer(_Schema):
    """The outcome for one input."""

    labels: list[LabelScore] = Field(description="the best first")
    truncated: bool = Field(description="the text was longer than the model reads and was cut")
    layers: list[LayerStatistics] | None = Field(default=None, description="absent for statistics=none")


class TimingAnswer(_Schema):
    """Where the time went, in milliseconds."""

    preprocess_ms: float
    queue_ms: float
    inference_ms: float


class PredictAnswer(_Schema):
    """One prediction for each input, in the order of the inputs."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "encoder",
                "version": "1",
                "predictions": [
                    {
                        "labels": [{"label": "balance", "score": 0.93}],
                        "truncated": False,
                        "layers": [_LAYER_EXAMPLE],
                    }
                ],
                "timing": {"preprocess_ms": 0.2, "queue_ms": 0.1, "inference_ms": 1.4},
            }
        },
    )

    model: str
    version: str
    predictions: list[PredictionAnswer]
    timing: TimingAnswer


class ModelSummary(_Schema):
    """One served model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"name": "encoder", "version": "1", "task": "text-classification", "ready": True, "layers": 17}
        },
    )

    name: str
    version: str
    task: str
    ready: bool
    layers: int = Field(description="number of probes")


class ModelList(_Schema):
    """All served models."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"models": [{"name": "encoder", "version": "1", "task": "text-classification", "ready": True, "layers": 17}]}
        },
    )

    models: list[ModelSummary]


class ModelCard(_Schema):
    """What a model is, takes and was measured to do."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "name": "encoder",
                "version": "1",
                "task": "text-classification",
                "description": "Transformer encoder for 150 intents",
                "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "length"]}],
                "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 150]}],
                "preprocessing": {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 64},
                "labels": ["balance", "weather"],
                "metrics": {"accuracy": 0.93},
                "training": {
                    "data": "CLINC150",
                    "samples": 15000,
                    "selection_samples": 3000,
                    "seed": 0,
                    "settings": {"batch_size": 64},
                },
                "libraries": {"torch": "2.13.0"},
                "files": {"model.onnx": "SHA-256"},
            }
        },
    )

    name: str
    version: str
    task: str
    description: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    preprocessing: ImagePreprocessing | TextPreprocessing
    labels: list[str]
    metrics: dict[str, float]
    training: Provenance
    libraries: dict[str, str]
    files: dict[str, str]


class LayerAnswer(_Schema):
    """One probe of a model."""

    layer: str = Field(description="module path of the layer")
    kind: ProbeKind
    shape: list[Dimension] | None
    channel_axis: int
    epsilon: float | None
    gamma: ParameterSummary | None
    beta: ParameterSummary | None


class LayerList(_Schema):
    """All probes in the order of execution."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "encoder",
                "version": "1",
                "layers": [
                    {
                        "layer": "blocks.0.attention_norm",
                        "kind": "layer_norm",
                        "shape": ["batch", "length", 128],
                        "channel_axis": 2,
                        "epsilon": 1e-5,
                        "gamma": {"mean": 1.0, "std": 0.05, "min": 0.8, "max": 1.2},
                        "beta": {"mean": 0.0, "std": 0.03, "min": -0.1, "max": 0.1},
                    }
                ],
            }
        },
    )

    model: str
    version: str
    layers: list[LayerAnswer]


class ValueRange(_Schema):
    """Of the values of the single inputs; null before the first."""

    mean: float | None
    min: float | None
    max: float | None


class TrafficSide(_Schema):
    """One side over all traffic: mean, var, std and zeros pooled by count, min and max extremes, l2 by input."""

    count: int
    mean: float | None
    var: float | None
    std: float | None
    min: float | None
    max: float | None
    l2: ValueRange
    zeros: float | None
    nonfinite: int = Field(description="sum over the inputs; an input with any is left out of the rest")


class TrafficLayer(_Schema):
    """One layer over all traffic."""

    layer: str
    kind: ProbeKind
    before: TrafficSide | None = None
    after: TrafficSide | None = None
    identity: TrafficSide | None = None
    residual: TrafficSide | None = None
    sum: TrafficSide | None = None
    residual_ratio: ValueRange | None = None
    cosine: ValueRange | None = None


class TrafficAnswer(_Schema):
    """Statistics over all traffic since the model was loaded."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "encoder",
                "version": "1",
                "requests": 2,
                "sampled": 2,
                "layers": [
                    {
                        "layer": "blocks.0.attention_norm",
                        "kind": "layer_norm",
                        "before": _SIDE_EXAMPLE | {"l2": {"mean": 38.4, "min": 37.0, "max": 39.8}},
                        "after": _SIDE_EXAMPLE | {"l2": {"mean": 32.0, "min": 31.0, "max": 33.0}},
                    }
                ],
            }
        },
    )

    model: str
    version: str
    requests: int = Field(description="inputs served; a call with three photos counts three")
    sampled: int = Field(description="of these, inputs whose statistics were taken")
    layers: list[TrafficLayer]


class Health(_Schema):
    """State of the service."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"status": "ready", "reason": None}})

    status: Literal["live", "ready", "loading", "failed"]
    reason: str | None = None
