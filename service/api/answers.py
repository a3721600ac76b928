"""How answers and errors become HTTP responses; the only reader of the table in `service.errors`."""

import logging
import re
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from models.preprocessing import InvalidInputError
from service.api.schemas import ErrorAnswer, ErrorDetail
from service.errors import STATUSES, NotReadyError, OverloadedError, ServiceError

_log = logging.getLogger("normscope")
_RETRY_AFTER_S = 1


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON by orjson, many times faster than the standard library on hundreds of thousands of numbers; NaN becomes null."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def documented_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for the OpenAPI pages."""
    return {status: {"model": ErrorAnswer} for status in statuses}


def _error(status: int, detail: ErrorDetail, headers: dict[str, str] | None = None) -> Response:
    return json_answer(ErrorAnswer(error=detail).model_dump(mode="json"), status, headers)


def _code(error: Exception) -> str:
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, (ServiceError, InvalidInputError))  # registered for these alone
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if isinstance(error, (OverloadedError, NotReadyError)) else None
    value = error.value if len(str(error.value)) <= 200 else str(error.value)[:200] + "..."
    detail = ErrorDetail(code=_code(error), message=str(error), value=value, limit=error.limit, remedy=error.remedy)
    return _error(status, detail, headers)


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "the request"
    detail = ErrorDetail(
        code="invalid_request",
        message=f"{name}: {first['msg']}",
        value=str(first.get("input"))[:200],
        limit=first["msg"],
        remedy=f"correct {name}; see /docs",
    )
    return _error(422, detail)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = ErrorDetail(
        code=code,
        message=f"{request.method} {request.url.path}: {error.detail}",
        value=request.url.path,
        remedy="see /docs for the routes and their methods",
    )
    return _error(error.status_code, detail, dict(error.headers) if error.headers else None)


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = ErrorDetail(
        code="internal",
        message="the service failed; this is a fault of ours",
        remedy="report it with the log of the service",
    )
    return _error(500, detail)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the metrics tell it from a fault of ours


def add_error_handlers(app: FastAPI) -> None:
    """Gives every error of the app the one JSON shape."""
    app.add_exception_handler(ServiceError, _known_error)
    app.add_exception_handler(InvalidInputError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
