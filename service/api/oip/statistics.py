"""GET /v2/models[/{model}[/versions/{version}]]/stats: counters of requests and runs in Triton's shape."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.answers import json_answer
from service.api.oip import schemas
from service.api.oip.documentation import ModelName, VersionName, documented
from service.engine.model import ServedModel
from service.engine.repository import Repository
from service.state import State

_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


@router.get("/models/stats", response_model=schemas.StatisticsAnswer, **documented())
def all_statistics(request: Request) -> Response:
    """Of all models, every version that is ready."""
    return _answer(ready_models(State.of(request).repository))


@router.get("/models/{model}/stats", response_model=schemas.StatisticsAnswer, **documented(404, path=("model",)))
def model_statistics(request: Request, model: ModelName) -> Response:
    """Of every version of the model that is ready."""
    repository = State.of(request).repository
    repository.get(model)  # says why it is not
    return _answer(ready_models(repository, model))


@router.get(
    "/models/{model}/versions/{version}/stats",
    response_model=schemas.StatisticsAnswer,
    **documented(404, path=("model", "version")),
)
def version_statistics(request: Request, model: ModelName, version: VersionName) -> Response:
    """Of this version."""
    return _answer([State.of(request).repository.get(model, version)])


def ready_models(repository: Repository, model: str | None = None) -> list[ServedModel]:
    """Every version that can answer now, of one model or of all."""
    entries = [entry for entry in repository.index() if model is None or entry.name == model]
    return [served for entry in entries if (served := repository.find(entry.name, entry.version)) is not None]


def _answer(models: list[ServedModel]) -> Response:
    return json_answer({"model_stats": [describe_counters(served) for served in models]})


def describe_counters(served: ServedModel) -> dict[str, Any]:
    """The counters of one version since it was loaded, in the shape of Triton's `ModelStatistics`."""
    counters = served.counters.snapshot()
    return {
        "name": served.manifest.name,
        "version": served.manifest.version,
        "last_inference": counters.last_inference_ms,
        "inference_count": counters.inference_count,
        "execution_count": counters.execution_count,
        "inference_stats": {name: asdict(getattr(counters, name)) for name in _DURATIONS},
        "batch_stats": [{"batch_size": size, **asdict(durations)} for size, durations in counters.batches.items()],
    }
