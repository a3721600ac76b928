"""Bodies of the protocol: an HTTP request in, JSON and binary data out, decompressed and within the limits. Knows no model.

Types of content are not looked at: real clients send none, or application/octet-stream.
"""

import json
import zlib
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from service.api.bodies import read_body
from service.api.oip.large_json import read_large_tensors
from service.errors import BodyTooLargeError, InvalidRequestError, UnsupportedMediaTypeError

HEADER_LENGTH = "Inference-Header-Content-Length"
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits: the gzip format, the zlib format
_ASIDE_BYTES = 1 << 16  # from here on compressing or parsing would hold up the event loop


@dataclass(frozen=True, slots=True)
class Body:
    """The JSON of a request, None if it has only binary data, and the binary data after it."""

    content: bytes | None
    binary: memoryview


async def read(request: Request, max_bytes: int) -> Body:
    """The body of an inference request.

    Raises:
        BodyTooLargeError: more than `max_bytes`, as it comes or decompressed.
        UnsupportedMediaTypeError: a Content-Encoding other than gzip and deflate.
        InvalidRequestError: broken compression, or a header that lies about the length of the JSON.
    """
    data = await read_plain(request, max_bytes)
    header = request.headers.get(HEADER_LENGTH)
    if header is None:
        return Body(data, memoryview(b""))
    length = int(header) if header.isascii() and header.isdecimal() and len(header) < 20 else -1
    if not 0 <= length <= len(data):
        raise InvalidRequestError(
            f"{HEADER_LENGTH} is {header[:40]}, the body has {len(data)} bytes",
            value=header,
            limit=len(data),
            remedy="send the length in bytes of the JSON at the start of the body, before compression",
        )
    return Body(data[:length] if length else None, memoryview(data)[length:])


async def read_plain(request: Request, max_bytes: int) -> bytes:
    """The decompressed body; raises like `read`."""
    data = await read_body(request, max_bytes)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return data
    if encoding not in _WINDOWS:
        raise UnsupportedMediaTypeError(
            f"the body is encoded as {encoding[:40]}",
            value=encoding,
            limit=", ".join(_WINDOWS),
            remedy="compress it by gzip or deflate, or not at all",
        )
    return await run_in_threadpool(decompress, data, encoding, max_bytes)  # few bytes may become many


def decompress(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undoes a Content-Encoding; never makes more than `max_bytes` + 1 bytes.

    Raises:
        BodyTooLargeError: more than `max_bytes` come out.
        InvalidRequestError: broken or truncated data, or something after its end.
    """
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    try:
        plain = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise _broken(encoding, str(error)) from None
    if len(plain) > max_bytes:
        raise BodyTooLargeError(
            f"the body has more than {max_bytes} bytes after decompression",
            value=f"more than {max_bytes}",
            limit=max_bytes,
            remedy="send less at once, or raise NORMSCOPE_MAX_BODY_BYTES",
        )
    if not inflater.eof:
        raise _broken(encoding, "it is truncated")
    if inflater.unused_data:
        raise _broken(encoding, "something follows its end")
    return plain


def _broken(encoding: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the body cannot be decompressed as {encoding} ({problem})",
        value=problem,
        limit=encoding,
        remedy=f"send the whole {encoding} data, or no Content-Encoding",
    )


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object of a body; NaN and infinities may stand in it as bare words, as Python writes them.

    Raises:
        InvalidRequestError: not JSON, or not an object; large, of more than 100,000 arrays and objects.
    """
    try:
        parsed = _loads(content) if len(content) < _ASIDE_BYTES else read_large_tensors(content, _loads)
    except orjson.JSONDecodeError as error:
        problem = str(error) if len(content) < _ASIDE_BYTES else error.msg
        raise InvalidRequestError(
            f"the body is not JSON ({problem})",
            value=problem,
            limit="JSON",
            remedy=f"send a JSON object; give its length in {HEADER_LENGTH} if binary data follow it",
        ) from None
    if not isinstance(parsed, dict):
        raise InvalidRequestError(
            "the body is not a JSON object", value=type(parsed).__name__, limit="object", remedy='send {"inputs": [...]}'
        )
    return parsed


def _loads(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        if b"NaN" not in content and b"Infinity" not in content:
            raise
        try:
            parsed = json.loads(content.decode())
            orjson.dumps(parsed)  # refuses what orjson refuses to read: lone surrogates, integers beyond 64 bits, deep nesting
        except (ValueError, RecursionError, orjson.JSONEncodeError):
            pass
        else:
            return parsed
        raise


def choose_encoding(accepted: str) -> str | None:
    """Which of gzip and deflate an Accept-Encoding header prefers, None for neither; gzip where both are as welcome."""
    qualities: dict[str, float] = {}
    for part in accepted.lower().split(","):
        name, _, parameter = part.partition(";")
        if name.strip() in ("gzip", "deflate"):
            try:
                qualities[name.strip()] = float(parameter.partition("=")[2]) if parameter.strip() else 1.0
            except ValueError:
                continue
    welcome = [name for name, quality in qualities.items() if quality > 0]
    return max(welcome, key=lambda name: (qualities[name], name == "gzip"), default=None)


async def compress(data: bytes, encoding: str) -> bytes:
    """Applies gzip or deflate at the quickest level; large answers hold few patterns."""

    def run() -> bytes:
        deflater = zlib.compressobj(1, zlib.DEFLATED, _WINDOWS[encoding])
        return deflater.compress(data) + deflater.flush()

    return run() if len(data) < _ASIDE_BYTES else await run_in_threadpool(run)
