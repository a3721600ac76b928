"""Request bodies: an HTTP request in, encoded photos or texts out, within the limits. Decodes no image."""

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Message

from models.artifact import Manifest
from service.api.large_json import read_large_json
from service.errors import (
    BodyTooLargeError,
    InvalidHttpError,
    InvalidRequestError,
    ServiceError,
    SlowRequestError,
    UnsupportedMediaTypeError,
)
from service.scope import BODY_ERROR
from service.settings import Settings

_IMAGE_TYPES = "an image/* body, multipart/form-data with `image` parts, or application/json"
_TEXT_TYPES = "application/json"
_ASIDE_BYTES = 1 << 16  # of JSON, from here on reading it would hold up the event loop
_AROUND_BYTES = 1 << 16  # of a large JSON body beside its inputs, more than 100 changes take
_AROUND_INPUT_BYTES = 1 << 9  # for each input, if it is short as well
_BASE64_PART = 1 << 20  # characters, a multiple of 4
_MULTIPART_PART = 1 << 18  # bytes
_DROPPED_BYTES = 100_000_000
_DROPPED_S = 5


async def read_inputs(request: Request, manifest: Manifest, settings: Settings) -> list[bytes] | list[str]:
    """The inputs of a prediction: encoded images for an image model, texts for a text model.

    Raises:
        UnsupportedMediaTypeError: a Content-Type that the model does not read, or a Content-Encoding.
        BodyTooLargeError, SlowRequestError, InvalidHttpError, ClientDisconnect: see `read_body`.
        InvalidRequestError: the model takes neither; broken JSON, multipart or base64, no input, too many.
    """
    takes_images = _takes_images(manifest)
    media_type = _media_type(request)
    is_json = _is_json(media_type)
    if not is_json and not (takes_images and (media_type.startswith("image/") or media_type == "multipart/form-data")):
        raise UnsupportedMediaTypeError(
            f"{manifest.name} cannot read a body of type {media_type or '(none)'}",
            value=media_type,
            limit=_IMAGE_TYPES if takes_images else _TEXT_TYPES,
            remedy=f"send {_IMAGE_TYPES if takes_images else _TEXT_TYPES} and set Content-Type",
        )
    _check_encoding(request)
    body = await read_body(request, settings.max_body_bytes)
    inputs: list[bytes] | list[str]
    if is_json:
        inputs, _ = await _read_json(body, ("inputs",), settings, takes_images=takes_images)
    elif media_type == "multipart/form-data":
        inputs = await _multipart_images(request.headers, body)
    else:
        inputs = [body]
    _check_count(len(inputs), settings.max_inputs)
    return inputs


async def read_json_inputs(
    request: Request, manifest: Manifest, settings: Settings, field: str
) -> tuple[list[bytes] | list[str], Any]:
    """The inputs of a request whose body is JSON alone, and the value of its one other field.

    Raises:
        As for `read_inputs`.
    """
    media_type = _media_type(request)
    takes_images = _takes_images(manifest)
    if not _is_json(media_type):
        raise UnsupportedMediaTypeError(
            f"a body of type {media_type or '(none)'} cannot hold {field}",
            value=media_type,
            limit=_TEXT_TYPES,
            remedy=f"send {_TEXT_TYPES} with inputs and {field}, images as base64, and set Content-Type",
        )
    _check_encoding(request)
    body = await read_body(request, settings.max_body_bytes)
    inputs, content = await _read_json(body, ("inputs", field), settings, takes_images=takes_images)
    return inputs, content[field]


async def _read_json(
    body: bytes, fields: tuple[str, ...], settings: Settings, *, takes_images: bool
) -> tuple[list[bytes] | list[str], dict[str, Any]]:
    """The inputs of a JSON object, and the whole of it."""
    if len(body) < _ASIDE_BYTES:
        return _inputs_of(body, fields, settings.max_inputs, takes_images)
    return await run_in_threadpool(_inputs_of, body, fields, settings.max_inputs, takes_images)


def _inputs_of(
    body: bytes, fields: tuple[str, ...], max_inputs: int, takes_images: bool
) -> tuple[list[bytes] | list[str], dict[str, Any]]:
    content = _json_object(body, fields, max_inputs)
    texts = _texts(content["inputs"])
    _check_count(len(texts), max_inputs)
    return [from_base64(i, text) for i, text in enumerate(texts)] if takes_images else texts, content


def _takes_images(manifest: Manifest) -> bool:
    """Whether it is photos that a model takes, and not texts.

    Raises:
        InvalidRequestError: it takes neither.
    """
    if manifest.preprocessing is None:
        raise InvalidRequestError(
            f"{manifest.name} takes tensors, neither photos nor texts",
            value=None,
            limit=[spec.name for spec in manifest.inputs],
            remedy=f"send tensors to /v2/models/{manifest.name}/infer, or import the model again with --preprocessing",
        )
    return manifest.preprocessing.kind == "image"


def _header(request: Request, name: bytes) -> str:
    """The first of this name, which is in lower case; the framework's own mapping takes five times as long to make and ask."""
    for key, value in request.scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


def _media_type(request: Request) -> str:
    return _header(request, b"content-type").partition(";")[0].strip().lower()


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")


def _check_encoding(request: Request) -> None:
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


def _json_object(body: bytes, fields: tuple[str, ...], max_inputs: int) -> dict[str, Any]:
    """An object with these fields, `inputs` first, and no others."""
    is_large = len(body) >= _ASIDE_BYTES
    try:
        content: Any = read_large_json(body, _AROUND_BYTES + _AROUND_INPUT_BYTES * max_inputs) if is_large else orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(
            f"the body is not JSON ({error.msg if is_large else error})",
            value=f"{len(body)} bytes",
            remedy='send {"inputs": "..."}',
        ) from None
    for field in fields:
        if not isinstance(content, dict) or field not in content:
            others = "".join(f', "{other}": ...' for other in fields[1:])
            raise InvalidRequestError(
                f"the body has no field `{field}`",
                value=sorted(content) if isinstance(content, dict) else type(content).__name__,
                limit=", ".join(fields),
                remedy=f'send {{"inputs": "..."{others}}} or {{"inputs": ["...", "..."]{others}}}',
            )
    if len(content) > len(fields):
        unknown = sorted(set(content) - set(fields))
        raise InvalidRequestError(
            f"the body has unknown fields: {', '.join(unknown)[:200]}",
            value=unknown[:10],
            limit=", ".join(fields),
            remedy="send top_k, statistics and layers as query parameters",
        )
    return dict(content)


def _texts(inputs: Any) -> list[str]:
    items = inputs if isinstance(inputs, list) else [inputs]
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise InvalidRequestError(
                f"input {i} is not a string but {type(item).__name__}",
                value=item if item is None or isinstance(item, (int, float)) else type(item).__name__,
                limit="a string",
                remedy="send a text, or an image as base64",
            )
    return items


def from_base64(index: int, text: str) -> bytes:
    """The bytes that input `index` holds as base64 or as a data URL.

    Raises:
        InvalidRequestError: it does not.
    """
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        # in parts: each keeps the interpreter from the event loop for a moment only
        parts = (payload[start : start + _BASE64_PART] for start in range(0, len(payload), _BASE64_PART))
        return b"".join(base64.b64decode(part, validate=True) for part in parts)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(
            f"input {index} is not base64 ({error})",
            value=text[:40],
            limit="base64 of an image file",
            remedy="encode the bytes of the file with base64",
        ) from None


class _WholeParser(MultiPartParser):
    """Parses a body that is in memory already, and takes none whose end is missing."""

    spool_max_size = 1 << 40  # never to a file: the disk may be read-only
    _ended = False

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        try:
            form = await super().parse()
            if not self._ended:
                raise MultiPartException("the last boundary is missing")
        except BaseException:
            for file in self._files_to_close_on_error:  # of parts without an end, too
                file.close()
            raise
        return form


async def _multipart_images(headers: Headers, body: bytes) -> list[bytes]:
    async def stream() -> AsyncGenerator[bytes]:
        for start in range(0, len(body), _MULTIPART_PART):
            await asyncio.sleep(0)  # other requests have their turn in between
            yield body[start : start + _MULTIPART_PART]

    try:
        form = await _WholeParser(headers, stream(), max_files=10_000).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise InvalidRequestError(
            f"the multipart body is broken ({getattr(error, 'message', error)!s})",
            value=f"{len(body)} bytes",
            remedy="send multipart/form-data with a boundary and `image` parts, as curl -F image=@photo.jpg does",
        ) from None
    try:
        if strangers := sorted({name for name, _ in form.multi_items()} - {"image"}):
            raise InvalidRequestError(
                f"unknown parts: {', '.join(strangers)[:200]}",
                value=strangers[:10],
                limit="image",
                remedy="name every part `image`",
            )
        return [await _file_content(part) for part in form.getlist("image")]
    finally:
        await form.close()


async def _file_content(part: UploadFile | str) -> bytes:
    if not isinstance(part, UploadFile):
        raise InvalidRequestError(
            "the part `image` is a field, not a file",
            value=part,
            limit="a file",
            remedy="send a file: curl -F image=@photo.jpg",
        )
    return await part.read()


def _check_count(count: int, max_inputs: int) -> None:
    if not count:
        raise InvalidRequestError("there is no input", value=0, limit="at least 1", remedy="send at least one image or text")
    if count > max_inputs:
        raise InvalidRequestError(
            f"{count} inputs are more than {max_inputs}",
            value=count,
            limit=max_inputs,
            remedy="split the request, or raise NORMSCOPE_MAX_INPUTS",
        )
