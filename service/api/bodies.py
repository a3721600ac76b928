"""Bodies of requests: whole and within the limits, and what their headers say of them."""

import asyncio
import contextlib

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.errors import BodyTooLargeError, InvalidHttpError, ServiceError, SlowRequestError, UnsupportedMediaTypeError
from service.scope import BODY_ERROR

_DROPPED_BYTES = 100_000_000
_DROPPED_S = 5


def media_type(request: Request) -> str:
    """Of the body, without parameters, in lower case; empty where there is none."""
    return _header(request, b"content-type").partition(";")[0].strip().lower()


def check_encoding(request: Request) -> None:
    """Returns if the body comes as it is.

    Raises:
        UnsupportedMediaTypeError: it has a Content-Encoding.
    """
    encoding = _header(request, b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError(
            f"the body is encoded as {encoding[:40]}",
            value=encoding,
            limit="no Content-Encoding",
            remedy="send it as it is, or to /v2, which reads gzip and deflate",
        )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body; keeps no more than `max_bytes` and one packet, whatever the headers claim.

    A body that is too large is read on for at most `_DROPPED_BYTES` and `_DROPPED_S`, and dropped: a client that sends all before
    it reads would find its connection reset otherwise, and not the answer. One that waits for leave to send
    (`Expect: 100-continue`) gets the answer at once. The time for the body is `body_timeout_s` from its head on; the connection
    (`service.protocol`) keeps it, so that a body that comes with its head, as nearly all do, costs no timer.

    Raises:
        BodyTooLargeError: more than `max_bytes`.
        SlowRequestError: it did not come in time.
        InvalidHttpError: what came in its place is not HTTP.
        ClientDisconnect: the client went away before its end.
    """
    declared = _header(request, b"content-length")
    if declared.isdecimal() and int(declared) > max_bytes:
        if _header(request, b"expect").lower() != "100-continue":
            await _drop_rest(request)
        raise _too_large(int(declared), max_bytes)
    body, more = _chunk(request, await request.receive())
    if more:
        chunks = bytearray(body)
        while more and len(chunks) <= max_bytes:
            chunk, more = _chunk(request, await request.receive())
            chunks += chunk
        body = bytes(chunks)
    if len(body) > max_bytes:
        if more:
            await _drop_rest(request)
        raise _too_large(f"at least {len(body)}", max_bytes)
    return body


def _chunk(request: Request, message: Message) -> tuple[bytes, bool]:
    """What a message holds of the body, and whether there is more."""
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    more = message.get("more_body", False)
    error = request.scope.get(BODY_ERROR)
    if more and isinstance(error, ServiceError):
        raise error
    return message.get("body", b""), more


async def _drop_rest(request: Request) -> None:
    dropped, more = 0, True
    with contextlib.suppress(TimeoutError, SlowRequestError, InvalidHttpError):
        async with asyncio.timeout(_DROPPED_S):
            while more and dropped < _DROPPED_BYTES:
                chunk, more = _chunk(request, await request.receive())
                dropped += len(chunk)


def _too_large(size: object, max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body has {size} bytes, more than {max_bytes}",
        value=size,
        limit=max_bytes,
        remedy="send less at once, or raise NORMSCOPE_MAX_BODY_BYTES",
    )


def _header(request: Request, name: bytes) -> str:
    """The first of this name, which is in lower case; the framework's own mapping takes five times as long to make and ask."""
    for key, value in request.scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""
