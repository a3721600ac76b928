"""How answers and errors become HTTP responses, by the tables in `service.errors`."""

import logging
import re
import reprlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from models.preprocessing import InvalidInputError
from service.api.schemas import ErrorAnswer, ErrorDetail
from service.errors import (
    OIP_STATUSES,
    STATUSES,
    BodyTooLargeError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    SlowRequestError,
    UnauthorizedError,
)

_log = logging.getLogger("normscope")
_RETRY_AFTER = {"Retry-After": "1"}  # seconds
_CLOSE = {"Connection": "close"}  # what is left of the body would be read as the next request
_MAX_VALUE = 200
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _MAX_VALUE
_HEADERS: Mapping[type[Exception], Mapping[str, str]] = {
    OverloadedError: _RETRY_AFTER,
    NotReadyError: _RETRY_AFTER,
    BodyTooLargeError: _CLOSE,
    SlowRequestError: _CLOSE,
    UnauthorizedError: {"WWW-Authenticate": "Bearer"},
}


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON by orjson, many times faster than the standard library on hundreds of thousands of numbers; NaN becomes null."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def documented_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for the OpenAPI pages."""
    return {status: {"model": ErrorAnswer} for status in statuses}


def speaks_oip(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol, whose errors are a text."""
    return path == "/v2" or path.startswith("/v2/")


def error_answer(path: str, error: ServiceError | InvalidInputError) -> Response:
    """A known error as the part of the API that `path` belongs to tells it: statuses, shape and headers."""
    statuses = OIP_STATUSES if speaks_oip(path) else STATUSES
    status = next(statuses[kind] for kind in type(error).__mro__ if kind in statuses)
    detail = ErrorDetail(code=_code(error), message=str(error), value=_shown(error.value), limit=error.limit, remedy=error.remedy)
    headers = next((headers for kind, headers in _HEADERS.items() if isinstance(error, kind)), None)
    return _error(path, status, detail, headers)


def _shown(value: object) -> object:
    """The value itself if it is short, else its beginning; clients send lists that are too long or too deep for Python to print."""
    text = value if isinstance(value, str) else _SHORT.repr(value)
    whole = len(text) <= _MAX_VALUE and (isinstance(value, str) or "..." not in text)  # which stands for what is left out
    return value if whole else f"{text[:_MAX_VALUE]}..."


def _error(path: str, status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None) -> Response:
    content = {"error": detail.message} if speaks_oip(path) else ErrorAnswer(error=detail).model_dump(mode="json")
    return json_answer(content, status, dict(headers or {}))


def _code(error: Exception) -> str:
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


async def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, (ServiceError, InvalidInputError))  # registered for these alone
    return error_answer(request.scope["path"], error)


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
    return _error(request.scope["path"], 400 if speaks_oip(request.scope["path"]) else 422, detail)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = ErrorDetail(
        code=code,
        message=f"{request.method} {request.scope['path']}: {error.detail}",
        value=request.scope["path"],
        remedy="see /docs for the routes and their methods",
    )
    return _error(request.scope["path"], error.status_code, detail, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    detail = ErrorDetail(
        code="internal",
        message="the service failed; this is a fault of ours",
        remedy="report it with the log of the service",
    )
    return _error(request.scope["path"], 500, detail)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the metrics tell it from a fault of ours


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ServiceError: _known_error,
    InvalidInputError: _known_error,
    RequestValidationError: _invalid_parameter,
    HTTPException: _http_error,
    ClientDisconnect: _gone,
    Exception: _unexpected,
}


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to any error of a route."""
    handler = next(_HANDLERS[kind] for kind in type(error).__mro__ if kind in _HANDLERS)
    return await handler(request, error)


def add_error_handlers(app: FastAPI) -> None:
    """Gives every error of the app the one JSON shape."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
