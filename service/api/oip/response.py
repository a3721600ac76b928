"""Answers to inference requests: tensors in, an HTTP response with JSON, binary data and compression as the client asked out."""

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import Response

from service.api.oip.binary import to_binary
from service.api.oip.body import HEADER_LENGTH
from service.api.oip.datatypes import Tensor, to_json
from service.api.oip.outputs import WantedOutput


def encode_answer(head: dict[str, Any], chosen: Sequence[WantedOutput], tensors: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if binary data follow it.

    Args:
        head: what the JSON holds beside the outputs.
        chosen: says of each tensor whether it goes as binary data.
        tensors: in the same order.

    Raises:
        InvalidRequestError: an output holds what JSON cannot.
    """
    described: list[orjson.Fragment] = []
    parts: list[bytes] = []
    for output, tensor in zip(chosen, tensors, strict=True):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if output.binary:
            data = to_binary(tensor.values)
            parts.append(data)
            entry["parameters"] = {"binary_data_size": len(data)}
        else:
            entry["data"] = to_json(tensor)
        # each by itself: orjson keeps the interpreter to itself while it works
        described.append(orjson.Fragment(orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY)))
    content = orjson.dumps({**head, "outputs": described})
    return (b"".join([content, *parts]), len(content)) if parts else (content, None)


def answer(body: bytes, json_length: int | None, encoding: str | None) -> Response:
    """The response for a body that is already compressed if `encoding` says so; `json_length` is that before compression."""
    headers = {} if json_length is None else {HEADER_LENGTH: str(json_length)}
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    return Response(body, headers=headers, media_type="application/json" if json_length is None else "application/octet-stream")
