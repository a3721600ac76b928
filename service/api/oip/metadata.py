"""GET /v2, /v2/models/{model}[/versions/{version}] and their /config: what the server and its models are."""

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from models.artifact import MODEL
from service.api.answers import json_answer
from service.api.oip import schemas
from service.api.oip.datatypes import BYTES
from service.api.oip.documentation import ModelName, VersionName, documented
from service.api.oip.interface import DeclaredTensor, ModelInterface
from service.api.oip.layer_statistics import LEVELS, StatisticsCatalogue
from service.engine.repository import Repository
from service.settings import Settings
from service.state import State

SERVER = "normscope"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


@router.get("", response_model=schemas.ServerMetadata, **documented())
@router.get("/", include_in_schema=False)
def server_metadata(request: Request) -> Response:
    """Name, version and extensions of the server."""
    return json_answer({"name": SERVER, "version": request.app.version, "extensions": EXTENSIONS})


@router.get("/models/{model}", response_model=schemas.ModelMetadata, **documented(404, path=("model",)))
def model_metadata(request: Request, model: ModelName) -> Response:
    """Inputs and outputs of the newest version that is ready."""
    return _metadata(request, model, None)


@router.get(
    "/models/{model}/versions/{version}",
    response_model=schemas.ModelMetadata,
    **documented(404, path=("model", "version")),
)
def version_metadata(request: Request, model: ModelName, version: VersionName) -> Response:
    """Inputs and outputs of this version."""
    return _metadata(request, model, version)


def _metadata(request: Request, model: str, version: str | None) -> Response:
    repository = State.of(request).repository
    interface = ModelInterface.of(repository.get(model, version))
    return json_answer(describe_model(interface, ready_versions(repository, model)))


def ready_versions(repository: Repository, model: str) -> list[str]:
    """The versions of a model that can answer now."""
    return [entry.version for entry in repository.index() if entry.name == model and entry.state == "READY"]


def describe_model(interface: ModelInterface, versions: list[str]) -> dict[str, Any]:
    """The metadata of a model; layer statistics are not among its outputs, because clients ask for all that are."""
    return {
        "name": interface.manifest.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [_describe_tensor(tensor) for tensor in interface.inputs.values()],
        "outputs": [_describe_tensor(tensor) for tensor in interface.outputs.values()],
    }


def _describe_tensor(tensor: DeclaredTensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


@router.get("/models/{model}/config", response_model=schemas.ModelConfiguration, **documented(404, path=("model",)))
def model_config(request: Request, model: ModelName) -> Response:
    """The configuration of the newest version that is ready.

    Its parameters list the layer statistics, as JSON: `layer_statistics` the levels, `layer_statistics.summary` and
    `layer_statistics.channels` the names of the outputs, `layer_statistics.rows.SIDE` the layers in the rows of a summary.
    """
    return _config(request, model, None)


@router.get(
    "/models/{model}/versions/{version}/config",
    response_model=schemas.ModelConfiguration,
    **documented(404, path=("model", "version")),
)
def version_config(request: Request, model: ModelName, version: VersionName) -> Response:
    """The configuration of this version, see that of the model."""
    return _config(request, model, version)


def _config(request: Request, model: str, version: str | None) -> Response:
    state = State.of(request)
    return json_answer(configure_model(ModelInterface.of(state.repository.get(model, version)), state.settings))


def configure_model(interface: ModelInterface, settings: Settings) -> dict[str, Any]:
    """The configuration of a model in the shape of Triton's `ModelConfig`; a `max_batch_size` of 0 says that it has no batch."""
    batched = interface.manifest.batched
    return {
        "name": interface.manifest.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": settings.max_inputs if batched else 0,
        "input": [
            {**_configure_tensor(tensor, batched=batched), "optional": len(interface.ways) > 1}
            for tensor in interface.inputs.values()
        ],
        "output": [{**_configure_tensor(tensor, batched=batched), "label_filename": ""} for tensor in interface.outputs.values()],
        "dynamic_batching": {
            "preferred_batch_size": [settings.max_batch_size],
            "max_queue_delay_microseconds": int(settings.max_queue_delay_ms * 1000),
        },
        "default_model_filename": MODEL,
        "parameters": {name: {"string_value": json.dumps(value)} for name, value in _list_statistics(interface.statistics).items()},
    }


def _configure_tensor(tensor: DeclaredTensor, *, batched: bool) -> dict[str, Any]:
    kind = "STRING" if tensor.datatype == BYTES else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": tensor.shape[1:] if batched else tensor.shape}


def _list_statistics(catalogue: StatisticsCatalogue) -> dict[str, list[str]]:
    return {
        "layer_statistics": list(LEVELS),
        "layer_statistics.summary": list(catalogue.summary),
        "layer_statistics.channels": list(catalogue.channels),
        **{f"layer_statistics.rows.{side}": layers for side, layers in catalogue.rows.items()},
    }
