"""/livez, /readyz and /metrics: for orchestrators and Prometheus. Some load balancers ask for health by HEAD."""

from fastapi import APIRouter, Request, Response

from service.api.answers import json_answer
from service.api.schemas import Health
from service.state import State

router = APIRouter(tags=["operation"])


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_model=Health)
async def live() -> Response:
    """200 while the process answers."""
    return json_answer({"status": "live", "reason": None})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=Health, responses={503: {"model": Health}})
async def ready(request: Request) -> Response:
    """200 once every model is loaded and has run; 503 before, if one cannot be loaded, and from the moment of a signal to stop."""
    state = State.of(request)
    repository = state.repository
    if not state.lifecycle.serving:
        return json_answer({"status": "stopping", "reason": "the service is about to stop"}, 503)
    if repository.ready:
        return json_answer({"status": "ready", "reason": None})
    if repository.failures:
        return json_answer({"status": "failed", "reason": "; ".join(repository.failures)}, 503)
    return json_answer({"status": "loading", "reason": "the models are being loaded"}, 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"example": 'normscope_requests_total{model="encoder"} 1.0'}}}},
)
def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    content, media_type = State.of(request).metrics.expose()
    return Response(content, media_type=media_type)
