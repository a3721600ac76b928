"""The inputs of a prediction: an HTTP request in, encoded images or texts out, within the limits. Decodes no image."""

import base64
import binascii
from typing import Any

import orjson
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from models.artifact import Manifest
from service.api.bodies import check_encoding, media_type, read_body
from service.api.large_json import read_large_json
from service.api.multipart import multipart_images
from service.errors import InvalidRequestError, UnsupportedMediaTypeError
from service.settings import Settings

_IMAGE_TYPES = "an image/* body, multipart/form-data with `image` parts, or application/json"
_TEXT_TYPES = "application/json"
_ASIDE_BYTES = 1 << 16  # of JSON, from here on reading it would hold up the event loop
_AROUND_BYTES = 1 << 16  # of a large JSON body beside its inputs, more than 100 changes take
_AROUND_INPUT_BYTES = 1 << 9  # for each input, if it is short as well
_BASE64_PART = 1 << 20  # characters, a multiple of 4


async def read_inputs(request: Request, manifest: Manifest, settings: Settings) -> list[bytes] | list[str]:
    """The inputs of a prediction: encoded images for an image model, texts for a text model.

    Raises:
        UnsupportedMediaTypeError: a Content-Type that the model does not read, or a Content-Encoding.
        BodyTooLargeError, SlowRequestError, InvalidHttpError, ClientDisconnect: see `read_body`.
        InvalidRequestError: the model takes neither; broken JSON, multipart or base64, no input, too many.
    """
    takes_images = _takes_images(manifest)
    kind = media_type(request)
    is_json = _is_json(kind)
    if not is_json and not (takes_images and (kind.startswith("image/") or kind == "multipart/form-data")):
        raise UnsupportedMediaTypeError(
            f"{manifest.name} cannot read a body of type {kind or '(none)'}",
            value=kind,
            limit=_IMAGE_TYPES if takes_images else _TEXT_TYPES,
            remedy=f"send {_IMAGE_TYPES if takes_images else _TEXT_TYPES} and set Content-Type",
        )
    check_encoding(request)
    body = await read_body(request, settings.max_body_bytes)
    inputs: list[bytes] | list[str]
    if is_json:
        inputs, _ = await _read_json(body, ("inputs",), settings, takes_images=takes_images)
    elif kind == "multipart/form-data":
        inputs = await multipart_images(request.headers, body)
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
    kind = media_type(request)
    takes_images = _takes_images(manifest)
    if not _is_json(kind):
        raise UnsupportedMediaTypeError(
            f"a body of type {kind or '(none)'} cannot hold {field}",
            value=kind,
            limit=_TEXT_TYPES,
            remedy=f"send {_TEXT_TYPES} with inputs and {field}, images as base64, and set Content-Type",
        )
    check_encoding(request)
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


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or media_type.endswith("+json")


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
