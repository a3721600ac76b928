"""GET /v1/models...: what is served, the card and the layers of each model."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.api.answers import documented_errors, json_answer
from service.api.schemas import LayerList, ModelCard, ModelList
from service.state import State

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelsQuery(BaseModel):
    """No parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelQuery(ModelsQuery):
    """Parameters of what describes a model."""

    version: str | None = Field(default=None, description="of the model; the newest where it is not given")


@router.get("", response_model=ModelList, responses=documented_errors(422, 503))
def list_models(request: Request, query: Annotated[ModelsQuery, Query()]) -> Response:
    """All models of the repository, ready or not."""
    repository = State.of(request).repository
    versions: dict[str, list[dict[str, str]]] = {}
    for entry in repository.index():
        versions.setdefault(entry.name, []).append({"version": entry.version, "state": entry.state, "reason": entry.reason})
    served = {manifest.name: manifest for manifest in repository.manifests}
    listed = []
    for name, states in versions.items():
        manifest = served.get(name)
        listed.append(
            {
                "name": name,
                "version": manifest and manifest.version,
                "task": manifest and manifest.task,
                "ready": manifest is not None,
                "layers": manifest and len(manifest.layers),
                "versions": states,
            }
        )
    return json_answer({"models": listed})


@router.get("/{model}", response_model=ModelCard, responses=documented_errors(404, 422, 503))
def model_card(request: Request, model: str, query: Annotated[ModelQuery, Query()]) -> Response:
    """Task, inputs, labels, metrics and provenance."""
    manifest = State.of(request).repository.get(model, query.version).manifest
    return json_answer(manifest.model_dump(mode="json", exclude={"layers", "format"}))


@router.get("/{model}/layers", response_model=LayerList, responses=documented_errors(404, 422, 503))
def model_layers(request: Request, model: str, query: Annotated[ModelQuery, Query()]) -> Response:
    """Every probe in the order of execution, with its normalization's parameters."""
    manifest = State.of(request).repository.get(model, query.version).manifest
    layers = [layer.model_dump(mode="json", exclude={"tensors", "mask", "mask_axis"}) for layer in manifest.layers]
    return json_answer({"model": manifest.name, "version": manifest.version, "layers": layers})
