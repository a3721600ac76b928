"""GET /v2/health/live, /v2/health/ready and /v2/models/{model}[/versions/{version}]/ready."""

from fastapi import APIRouter, Request, Response

from service.api.answers import json_answer
from service.api.oip import schemas
from service.api.oip.documentation import ModelName, VersionName, documented
from service.errors import NotReadyError
from service.state import State

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", response_model=schemas.Live)
async def live() -> Response:
    """200 while the process answers."""
    return json_answer({"live": True})


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", response_model=schemas.Ready, responses={503: {"model": schemas.OipError}})
async def ready(request: Request) -> Response:
    """200 once every model is loaded and has run, until a signal to stop."""
    state = State.of(request)
    repository = state.repository
    if not state.lifecycle.serving:
        raise NotReadyError("the service is about to stop", remedy="send requests to another instance")
    if not repository.ready:
        reason = "; ".join(repository.failures) or "the models are being loaded"
        raise NotReadyError(f"the server is not ready: {reason}", remedy="wait, or see POST /v2/repository/index")
    return json_answer({"ready": True})


@router.get("/models/{model}/ready", response_model=schemas.ModelReady, **documented(404, path=("model",)))
async def model_ready(request: Request, model: ModelName) -> Response:
    """200 while the model answers to its name without a version."""
    State.of(request).repository.get(model)
    return json_answer({"name": model, "ready": True})


@router.get(
    "/models/{model}/versions/{version}/ready",
    response_model=schemas.ModelReady,
    **documented(404, path=("model", "version")),
)
async def version_ready(request: Request, model: ModelName, version: VersionName) -> Response:
    """200 while this version can answer."""
    State.of(request).repository.get(model, version)
    return json_answer({"name": model, "ready": True})
