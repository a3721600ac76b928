"""POST /v2/repository/index and /v2/repository/models/{model}/load, /unload."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from service.api.answers import json_answer
from service.api.oip import body, schemas
from service.api.oip.documentation import ModelName, documented, optional_body, parameters_schema
from service.api.oip.parameters import read_flag, read_parameters, refuse_overrides
from service.state import State

_BODY = "the request"

router = APIRouter(prefix="/v2/repository", tags=["Open Inference Protocol"])


async def _content(request: Request) -> dict[str, Any]:
    """The JSON object of a body, which clients may leave out."""
    data = await body.read_plain(request, State.of(request).settings.max_body_bytes)
    return body.parse_json(data) if data.strip() else {}


@router.post(
    "/index",
    response_model=schemas.RepositoryIndex,
    **documented(400, 408, 413, body=optional_body({"ready": {"type": ["boolean", "null"]}}, {"ready": True})),
)
async def index(request: Request) -> Response:
    """Every version of every model in the repository with its state; with `ready`, those that can answer now."""
    only_ready = read_flag(_BODY, await _content(request), "ready")
    repository = State.of(request).repository
    entries = repository.index() if only_ready else await run_in_threadpool(repository.listing)
    return json_answer([asdict(entry) for entry in entries if entry.state == "READY" or not only_ready])


_LOAD_BODY = optional_body({"parameters": parameters_schema()}, {})
_UNLOAD_BODY = optional_body(
    {"parameters": parameters_schema(unload_dependents={"type": "boolean"})}, {"parameters": {"unload_dependents": False}}
)


@router.post(
    "/models/{model}/load",
    response_class=Response,
    response_description="Loaded; the answer is empty.",
    **documented(400, 404, 408, 413, 501, path=("model",), body=_LOAD_BODY),
)
async def load(request: Request, model: ModelName) -> Response:
    """Loads the versions of the model that are new or have changed; the one that serves goes on until its successor is warm."""
    refuse_overrides(read_parameters(_BODY, await _content(request)))
    await State.of(request).administration.load(model)
    return Response()


@router.post(
    "/models/{model}/unload",
    response_class=Response,
    response_description="Unloaded; the answer is empty.",
    **documented(400, 404, 408, 413, path=("model",), body=_UNLOAD_BODY),
)
async def unload(request: Request, model: ModelName) -> Response:
    """Stops serving the model, once the requests in hand are answered. No model has dependents."""
    read_flag(_BODY, read_parameters(_BODY, await _content(request)), "unload_dependents")
    await State.of(request).administration.unload(model)
    return Response()
