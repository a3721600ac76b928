"""The routes of Triton's extensions that are not offered: shared memory, tracing and logging, all answered 501."""

from fastapi import APIRouter, Request, Response

from service.errors import NotOfferedError

router = APIRouter(prefix="/v2", include_in_schema=False)


@router.api_route("/systemsharedmemory/{rest:path}", methods=["GET", "POST"])
@router.api_route("/cudasharedmemory/{rest:path}", methods=["GET", "POST"])
@router.api_route("/trace/setting", methods=["GET", "POST"])
@router.api_route("/models/{model}/trace/setting", methods=["GET", "POST"])
@router.api_route("/models/{model}/versions/{version}/trace/setting", methods=["GET", "POST"])
@router.api_route("/logging", methods=["GET", "POST"])
async def not_offered(request: Request) -> Response:
    """Says so."""
    raise NotOfferedError(
        f"{request.method} {request.url.path} belongs to an extension that is not offered",
        value=request.url.path,
        remedy="GET /v2 lists the extensions; tensors travel in the body, the log level is set by NORMSCOPE_LOG_LEVEL",
    )
