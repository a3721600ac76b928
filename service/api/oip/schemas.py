"""The JSON of the protocol as the pages under /docs show it; nothing is checked against it on the way in."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from service.engine.slots import VersionState

_TENSOR: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": [-1]}
_LOGITS: dict[str, Any] = {"name": "logits", "datatype": "FP32", "shape": [-1, 150]}
_ENTRY: dict[str, Any] = {"name": "encoder", "version": "1", "state": "READY", "reason": ""}
_DURATION: dict[str, Any] = {"count": 10, "ns": 12_000_000}
_DURATIONS: dict[str, Any] = dict.fromkeys(
    ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"), _DURATION
)
_BATCH: dict[str, Any] = {"batch_size": 4, "compute_input": _DURATION, "compute_infer": _DURATION, "compute_output": _DURATION}
_MODEL_STATISTICS: dict[str, Any] = {
    "name": "encoder",
    "version": "1",
    "last_inference": 1_760_000_000_000,
    "inference_count": 40,
    "execution_count": 10,
    "inference_stats": _DURATIONS,
    "batch_stats": [_BATCH],
}
_INPUT_CONFIG: dict[str, Any] = {"name": "text", "data_type": "TYPE_STRING", "dims": [], "optional": True}
_OUTPUT_CONFIG: dict[str, Any] = {"name": "logits", "data_type": "TYPE_FP32", "dims": [150], "label_filename": ""}


def _like(example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": example})


class OipError(BaseModel):
    """The one shape of every error under /v2."""

    model_config = _like({"error": "no model is named 'resnet'; GET /v1/models lists the models"})

    error: str


class Live(BaseModel):
    """The process answers."""

    model_config = _like({"live": True})

    live: Literal[True]


class Ready(BaseModel):
    """All models are ready."""

    model_config = _like({"ready": True})

    ready: Literal[True]


class ModelReady(BaseModel):
    """The model is ready."""

    model_config = _like({"name": "encoder", "ready": True})

    name: str
    ready: Literal[True]


class ServerMetadata(BaseModel):
    """Of the server; `extensions` names only what is offered."""

    model_config = _like({"name": "normscope", "version": "0.1.0", "extensions": ["binary_tensor_data", "statistics"]})

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or output; -1 in the shape stands for any number."""

    model_config = _like(_TENSOR)

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Of a model; of its inputs a request gives the BYTES one, or all others."""

    model_config = _like(
        {"name": "encoder", "versions": ["1"], "platform": "onnxruntime_onnx", "inputs": [_TENSOR], "outputs": [_LOGITS]}
    )

    name: str
    versions: list[str] = Field(description="that are ready")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputConfig(BaseModel):
    """An input; dims are without the batch."""

    model_config = _like(_INPUT_CONFIG)

    name: str
    data_type: str
    dims: list[int]
    optional: bool


class OutputConfig(BaseModel):
    """An output; dims are without the batch."""

    model_config = _like(_OUTPUT_CONFIG)

    name: str
    data_type: str
    dims: list[int]
    label_filename: str


class ConfigParameter(BaseModel):
    """A value of the configuration's parameters."""

    model_config = _like({"string_value": '["none", "summary", "channels"]'})

    string_value: str


class DynamicBatching(BaseModel):
    """How requests are run together."""

    model_config = _like({"preferred_batch_size": [32], "max_queue_delay_microseconds": 0})

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int


class ModelConfiguration(BaseModel):
    """A model in the shape of Triton's ModelConfig; `parameters` tells of the layer statistics, see the route."""

    model_config = _like(
        {
            "name": "encoder",
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": 32,
            "input": [_INPUT_CONFIG],
            "output": [_OUTPUT_CONFIG],
            "dynamic_batching": {"preferred_batch_size": [32], "max_queue_delay_microseconds": 0},
            "default_model_filename": "model.onnx",
            "parameters": {"layer_statistics": {"string_value": '["none", "summary", "channels"]'}},
        }
    )

    name: str
    platform: str
    backend: str
    max_batch_size: int = Field(description="largest batch of one request")
    input: list[InputConfig]
    output: list[OutputConfig]
    dynamic_batching: DynamicBatching
    default_model_filename: str
    parameters: dict[str, ConfigParameter]


class DurationStatistics(BaseModel):
    """How often, and how long in total."""

    model_config = _like(_DURATION)

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Where the time of the requests went."""

    model_config = _like(_DURATIONS)

    success: DurationStatistics
    fail: DurationStatistics
    queue: DurationStatistics
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics


class BatchStatistics(BaseModel):
    """The runs of one batch size."""

    model_config = _like(_BATCH)

    batch_size: int
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics


class ModelStatistics(BaseModel):
    """Of one version since it was loaded."""

    model_config = _like(_MODEL_STATISTICS)

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since the epoch; 0 before the first run")
    inference_count: int = Field(description="inputs that were run")
    execution_count: int = Field(description="runs")
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class StatisticsAnswer(BaseModel):
    """Of every version that is ready."""

    model_config = _like({"model_stats": [_MODEL_STATISTICS]})

    model_stats: list[ModelStatistics]


class RepositoryEntry(BaseModel):
    """One version of a model in the repository."""

    model_config = _like(_ENTRY)

    name: str
    version: str
    state: VersionState
    reason: str = Field(description="why it is not ready")


class RepositoryIndex(RootModel[list[RepositoryEntry]]):
    """All versions of all models."""

    model_config = _like([_ENTRY])


class OutputTensor(BaseModel):
    """An output: `data`, or `parameters.binary_data_size` if its values follow the JSON."""

    model_config = _like({"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -0.5]})

    name: str
    datatype: str
    shape: list[int]
    data: list[float | str] | None = None
    parameters: dict[str, int] | None = None


class InferAnswer(BaseModel):
    """The outputs, in the order in which they were asked for."""

    model_config = _like(
        {
            "model_name": "encoder",
            "model_version": "1",
            "id": "42",
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -0.5]}],
        }
    )

    model_name: str
    model_version: str
    id: str | None = Field(default=None, description="of the request, if it had one")
    parameters: dict[str, int] | None = Field(
        default=None, description="truncated_texts: how many were longer than the model reads"
    )
    outputs: list[OutputTensor]
