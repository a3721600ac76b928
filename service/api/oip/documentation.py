"""What the routes of the protocol say of themselves under /docs: parameters, bodies with examples, and exactly their statuses."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Request

from service.api.oip.body import HEADER_LENGTH
from service.api.oip.schemas import InferAnswer, OipError


def _model(request: Request) -> str:
    return str(request.path_params["model"])


def _version(request: Request) -> str:
    return str(request.path_params["version"])


# dependencies and not path parameters, which FastAPI would document with a status 422 that nothing here gives
ModelName = Annotated[str, Depends(_model)]
VersionName = Annotated[str, Depends(_version)]

_PATH: dict[str, dict[str, Any]] = {
    name: {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": about, "example": example}
    for name, about, example in (("model", "name of the model", "encoder"), ("version", "version of the model", "1"))
}


def documented(*errors: int, path: Sequence[str] = (), body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a route says of itself: its errors, with 503 before the end; its path parameters and body."""
    extra: dict[str, Any] = {"parameters": [_PATH[name] for name in path]} if path else {}
    if body is not None:
        extra["requestBody"] = body
    return {"responses": {status: {"model": OipError} for status in (503, *errors)}, "openapi_extra": extra}


def optional_body(properties: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """A body that is a JSON object, and may be left out."""
    schema = {"type": "object", "properties": properties}
    return {"required": False, "content": {"application/json": {"schema": schema, "examples": {"example": {"value": example}}}}}


def parameters_schema(**known: dict[str, Any]) -> dict[str, Any]:
    """The schema of `parameters`: those that mean something, any others that are plain; null is as good as leaving one out."""
    null: dict[str, Any] = {"type": "null"}
    plain = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}, null]}
    properties = {name: {"anyOf": [schema, null]} for name, schema in known.items()}
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": plain}


_INFER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"], "description": "echoed in the answer"},
        "parameters": parameters_schema(
            layer_statistics={"enum": ["none", "summary", "channels"], "description": "layer statistics to add as outputs"},
            binary_data_output={"type": "boolean", "description": "outputs come as binary data unless they say otherwise"},
            timeout={"type": "integer", "minimum": 0, "description": "microseconds until the request is given up"},
        ),
        "inputs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string"},
                    "datatype": {"type": "string"},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "data": {"type": "array", "description": "flat or nested; left out if binary_data_size is given"},
                    "parameters": parameters_schema(),
                },
            },
        },
        "outputs": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": parameters_schema(
                        binary_data={"type": "boolean"},
                        classification={
                            "type": "integer",
                            "minimum": 0,
                            "description": "above 0: the best classes as value:index:label",
                        },
                    ),
                },
            },
        },
    },
}
_TEXT: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["what is my account balance"]}
INFER_EXAMPLES: dict[str, Any] = {
    "text": {"summary": "the logits of a text", "value": {"inputs": [_TEXT]}},
    "classification": {
        "summary": "the best three classes of a text",
        "value": {"inputs": [_TEXT], "outputs": [{"name": "logits", "parameters": {"classification": 3}}]},
    },
    "statistics": {
        "summary": "layer statistics of token ids",
        "value": {
            "parameters": {"layer_statistics": "summary"},
            "inputs": [
                {"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [[5, 6, 7]]},
                {"name": "attention_mask", "datatype": "INT64", "shape": [1, 3], "data": [[1, 1, 1]]},
            ],
        },
    },
}
_INFER_BODY: dict[str, Any] = {
    "required": True,
    "description": (
        f"JSON, with the binary data of the inputs after it where the header {HEADER_LENGTH} gives its length; a single encoded "
        "image or text without any JSON where that header is 0. Content-Encoding may be gzip or deflate."
    ),
    "content": {"application/json": {"schema": _INFER_SCHEMA, "examples": INFER_EXAMPLES}},
}


def documented_inference(*path: str) -> dict[str, Any]:
    """What the routes of inference say of themselves."""
    told = documented(400, 404, 408, 413, 501, 504, path=path, body=_INFER_BODY)
    told["responses"][200] = {
        "description": f"With binary data after the JSON, {HEADER_LENGTH} is the length of the JSON.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    return {"response_model": InferAnswer, **told}
