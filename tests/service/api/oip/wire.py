"""Requests of the protocol made by hand, so that wrong ones can be made as well."""

import json
import struct
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

TEXT = "/v2/models/text/infer"
VISION = "/v2/models/vision/infer"


def text(*texts: str) -> dict[str, Any]:
    """The BYTES input of the text model in JSON."""
    return {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}


def tokens(ids: list[list[int]]) -> list[dict[str, Any]]:
    """The raw inputs of the text model in JSON."""
    shape = [len(ids), len(ids[0])]
    mask = np.ones(shape, np.int64).tolist()
    return [
        {"name": "input_ids", "datatype": "INT64", "shape": shape, "data": ids},
        {"name": "attention_mask", "datatype": "INT64", "shape": shape, "data": mask},
    ]


def pixels(values: NDArray[np.float32]) -> dict[str, Any]:
    """The raw input of the image model in JSON."""
    return {"name": "image", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}


def request(*inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request with these inputs."""
    return {"inputs": list(inputs), **fields}


def elements(*values: bytes) -> bytes:
    """Binary data of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def with_binary(name: str, datatype: str, shape: list[int], data: bytes, **fields: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with one binary input."""
    entry = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
    content = json.dumps(request(entry, **fields)).encode()
    return content + data, {"Inference-Header-Content-Length": str(len(content))}


def array(answer: httpx.Response, name: str) -> NDArray[Any]:
    """An output of an answer, whichever way it came."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
    position = length
    for output in json.loads(answer.content[:length])["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["name"] == name:
            if "data" in output:
                return np.array(output["data"], np.float32).reshape(output["shape"])
            return np.frombuffer(answer.content[position : position + size], np.float32).reshape(output["shape"])
        position += size
    raise AssertionError(f"no output {name}")


def error(answer: httpx.Response) -> str:
    """The text of an error, whose shape is checked."""
    content = answer.json()
    assert set(content) == {"error"}
    assert isinstance(content["error"], str)
    return content["error"]
