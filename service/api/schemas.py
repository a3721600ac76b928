"""The JSON of the API as pydantic models, each with an example; what the pages under /docs show."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.artifact import ParameterSummary, Provenance, TensorSpec
from models.instrument.graph import Dimension
from models.instrument.probes import ProbeKind
from models.preprocessing import ImagePreprocessing, TextPreprocessing

Level = Literal["none", "summary", "channels"]
PredictLevel = Literal["none", "summary", "channels", "histogram"]

_SIDE: dict[str, Any] = {
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
_HISTOGRAM: dict[str, Any] = {"counts": [3, 1021], "edges": [-4.1, 0.6, 5.3]}
_QUANTILES: dict[str, Any] = {"1": -2.8, "5": -2.0, "25": -0.8, "50": 0.0, "75": 0.8, "95": 2.0, "99": 2.9}
_NORMALIZED = _SIDE | {"mean": 0.0, "var": 1.0, "std": 1.0, "l2": 32.0}
_LAYER: dict[str, Any] = {"layer": "blocks.0.attention_norm", "kind": "layer_norm", "before": _SIDE, "after": _NORMALIZED}
_LABEL: dict[str, Any] = {"label": "balance", "score": 0.93}
_CONTRIBUTION: dict[str, Any] = {"layer": "blocks.1.attention_norm", "contribution": 0.9}
_ANOMALY: dict[str, Any] = {"score": 2.1, "p_value": 0.021, "layers": [_CONTRIBUTION]}
_PREDICTION: dict[str, Any] = {"labels": [_LABEL], "truncated": False, "layers": [_LAYER], "anomaly": _ANOMALY}
_TIMING: dict[str, Any] = {"preprocess_ms": 0.2, "queue_ms": 0.1, "inference_ms": 1.4}
_ERROR: dict[str, Any] = {
    "code": "unknown_model",
    "message": "no model is named 'resnet'; GET /v1/models lists the models",
    "value": "resnet",
    "limit": ["encoder", "resnet50"],
    "remedy": "GET /v1/models lists the models",
}
_VERSION: dict[str, Any] = {"version": "1", "state": "READY", "reason": ""}
_MODEL: dict[str, Any] = {
    "name": "encoder",
    "version": "1",
    "task": "text-classification",
    "ready": True,
    "layers": 13,
    "versions": [_VERSION],
}
_LISTED_LAYER: dict[str, Any] = {
    "layer": "blocks.0.attention_norm",
    "kind": "layer_norm",
    "shape": ["batch", "length", 128],
    "channel_axis": 2,
    "epsilon": 1e-5,
    "gamma": {"mean": 1.0, "std": 0.05, "min": 0.8, "max": 1.2},
    "beta": {"mean": 0.0, "std": 0.03, "min": -0.1, "max": 0.1},
}
_CARD: dict[str, Any] = {
    "name": "encoder",
    "version": "1",
    "task": "text-classification",
    "description": "Transformer encoder for 150 intents",
    "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "length"]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 150]}],
    "batched": True,
    "mask": None,
    "extents": {},
    "preprocessing": {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 64},
    "labels": ["balance", "weather"],
    "probabilities": False,
    "notes": [],
    "reference_samples": 3000,
    "metrics": {"accuracy": 0.92},
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


def _like(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"example": example})


class ErrorDetail(BaseModel):
    """What is wrong, with the value, the limit and the remedy where they exist."""

    model_config = _like(_ERROR)

    code: str = Field(description="kind of the error, stable")
    message: str = Field(description="a sentence for people")
    value: Any = Field(default=None, description="what was sent or found")
    limit: Any = Field(default=None, description="what is allowed")
    remedy: str = Field(description="what to do")


class ErrorAnswer(BaseModel):
    """The one shape of every error under /v1."""

    model_config = _like({"error": _ERROR})

    error: ErrorDetail


class JsonInputs(BaseModel):
    """The JSON body of a prediction: one text or base64-encoded image, or a list of them."""

    model_config = _like({"inputs": "what is my account balance"})

    inputs: str | list[str]


class LabelScore(BaseModel):
    """One label and its softmax probability."""

    model_config = _like(_LABEL)

    label: str
    score: float | None = Field(description="0..1; null where the model's output is NaN")


class Histogram(BaseModel):
    """How many elements lie in each of 64 bins of one width, from the smallest element to the largest."""

    model_config = _like(_HISTOGRAM)

    counts: list[int]
    edges: list[float] = Field(description="one more than the counts; a bin holds its lower edge, the last one its upper edge too")


class SideStatistics(BaseModel):
    """Statistics of the elements of one tensor for one input; null where `nonfinite` is above 0."""

    model_config = _like(_SIDE)

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
    histogram: Histogram | None = Field(default=None, description="with statistics=histogram")
    quantiles: dict[str, float] | None = Field(
        default=None, description="with statistics=histogram: by percent, interpolated", examples=[_QUANTILES]
    )


class LayerStatistics(BaseModel):
    """A normalization (before, after) or a residual add (identity x, residual F(x), their sum before any activation)."""

    model_config = _like(_LAYER)

    layer: str
    kind: ProbeKind
    before: SideStatistics | None = None
    normalized: SideStatistics | None = Field(
        default=None,
        description="with statistics=histogram: what gamma scales and beta shifts; absent where the graph computes its parameters",
    )
    after: SideStatistics | None = None
    identity: SideStatistics | None = None
    residual: SideStatistics | None = None
    sum: SideStatistics | None = None
    residual_ratio: float | None = Field(default=None, description="l2(F(x)) / l2(x); near 0 the block is an identity")
    cosine: float | None = Field(default=None, description="of F(x) and x")


class LayerContribution(BaseModel):
    """The part of one layer in the score of an input."""

    model_config = _like(_CONTRIBUTION)

    layer: str
    contribution: float | None = Field(description="to the score, the sum of those of all layers; null for infinity")


class AnomalyAnswer(BaseModel):
    """How far the layers of an input lie from the reference of the model."""

    model_config = _like(_ANOMALY)

    score: float | None = Field(
        description="near 0 for an input like those of the reference, in their standard deviations; null for infinity: "
        "the statistics of a layer are not finite"
    )
    p_value: float = Field(
        description="(1 + number of reference scores >= score) / (n + 1): the fraction of such inputs that are as strange"
    )
    layers: list[LayerContribution] = Field(description="at most 5 that raise the score, the largest contribution first")


class PredictionAnswer(BaseModel):
    """The outcome for one input."""

    model_config = _like(_PREDICTION)

    labels: list[LabelScore] = Field(description="the best first; none where the model has no labels")
    truncated: bool = Field(description="the text was longer than the model reads and was cut")
    layers: list[LayerStatistics] | None = Field(default=None, description="absent for statistics=none")
    anomaly: AnomalyAnswer | None = Field(default=None, description="with anomaly=true")


class TimingAnswer(BaseModel):
    """Where the time went, in milliseconds."""

    model_config = _like(_TIMING)

    preprocess_ms: float
    queue_ms: float
    inference_ms: float
    stages_ms: float | None = Field(default=None, description="with statistics=histogram: looking at the chosen layers")


class PredictAnswer(BaseModel):
    """One prediction for each input, in the order of the inputs."""

    model_config = _like({"model": "encoder", "version": "1", "predictions": [_PREDICTION], "timing": _TIMING})

    model: str
    version: str
    predictions: list[PredictionAnswer]
    timing: TimingAnswer


class VersionSummary(BaseModel):
    """One version of a model."""

    model_config = _like(_VERSION)

    version: str
    state: Literal["LOADING", "READY", "UNAVAILABLE"]
    reason: str = Field(description="why it is not ready, or why its replacement could not be loaded")


class ModelSummary(BaseModel):
    """One model of the repository; version, task and layers are those of the version that answers, null while there is none."""

    model_config = _like(_MODEL)

    name: str
    version: str | None = Field(description="the newest that is ready: the highest of all digits")
    task: str | None
    ready: bool
    layers: int | None = Field(description="number of probes")
    versions: list[VersionSummary]


class ModelList(BaseModel):
    """All served models."""

    model_config = _like({"models": [_MODEL]})

    models: list[ModelSummary]


class ModelCard(BaseModel):
    """What a model is, takes and was measured to do."""

    model_config = _like(_CARD)

    name: str
    version: str
    task: str
    description: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batched: bool = Field(description="whether axis 0 of every input and output is the batch")
    mask: str | None = Field(description="input that tells tokens from padding, where it is not attention_mask")
    extents: dict[str, int] = Field(description="dynamic dimension -> an extent that the model was run with")
    preprocessing: ImagePreprocessing | TextPreprocessing | None = Field(description="null where the model takes tensors only")
    labels: list[str]
    probabilities: bool = Field(description="whether the output of the labels holds probabilities, and not logits")
    notes: list[str] = Field(description="what cannot be seen inside the model, and why")
    reference_samples: int = Field(description="number of samples that its reference holds; 0 without one")
    metrics: dict[str, float]
    training: Provenance
    libraries: dict[str, str]
    files: dict[str, str]


class LayerAnswer(BaseModel):
    """One probe of a model."""

    model_config = _like(_LISTED_LAYER)

    layer: str = Field(description="module path of the layer")
    kind: ProbeKind
    shape: list[Dimension] | None
    channel_axis: int
    epsilon: float | None
    gamma: ParameterSummary | None
    beta: ParameterSummary | None


class LayerList(BaseModel):
    """All probes in the order of execution."""

    model_config = _like({"model": "encoder", "version": "1", "layers": [_LISTED_LAYER]})

    model: str
    version: str
    layers: list[LayerAnswer]


class Health(BaseModel):
    """State of the service."""

    model_config = _like({"status": "ready", "reason": None})

    status: Literal["live", "ready", "loading", "failed", "stopping"]
    reason: str | None = None
