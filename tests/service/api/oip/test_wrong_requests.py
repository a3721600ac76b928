"""Wrong requests under /v2 against a real server: each is the client's error, with its status and one text."""

import gzip
import json
import socket
from typing import Any

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.service.api.oip.wire import TEXT, VISION, array, elements, error, pixels, request, text, tokens, with_binary

_IDS, _MASK = tokens([[5, 6]])
_ZEROS = np.zeros((1, 3, 2, 2), np.float32)


def _parameters(**parameters: Any) -> dict[str, Any]:
    return request(text("hello"), parameters=parameters)


def _output(name: str, **parameters: Any) -> dict[str, Any]:
    return request(text("hello"), outputs=[{"name": name, "parameters": parameters}])


_WRONG: dict[str, tuple[int, str, Any, str]] = {
    # name: status, URL, JSON, a part of the message
    "unknown model": (404, "/v2/models/nope/infer", request(text("a")), "nope"),
    "array": (400, TEXT, [], "object"),
    "no inputs": (400, TEXT, {}, "text, or input_ids and attention_mask"),
    "null inputs": (400, TEXT, {"inputs": None}, "text, or"),
    "inputs not an array": (400, TEXT, {"inputs": {}}, "inputs"),
    "input not an object": (400, TEXT, {"inputs": ["text"]}, "inputs"),
    "input without a name": (400, TEXT, {"inputs": [{"datatype": "BYTES"}]}, "name"),
    "unknown input": (400, TEXT, request({**text("a"), "name": "texts"}), "texts"),
    "input twice": (400, TEXT, request(text("a"), text("a")), "twice"),
    "both ways": (400, TEXT, request(text("a"), _IDS, _MASK), "text, or"),
    "a raw input is missing": (400, TEXT, request(_IDS), "attention_mask"),
    "wrong datatype": (400, TEXT, request({**text("a"), "datatype": "FP32"}), "BYTES"),
    "unknown datatype": (400, TEXT, request({**text("a"), "datatype": {}}), "BYTES"),
    "no shape": (400, TEXT, request({**text("a"), "shape": None}), "shape"),
    "wrong rank": (400, TEXT, request({**text("a"), "shape": [1, 1]}), "shape"),
    "negative dimension": (400, TEXT, request({**text("a"), "shape": [-1]}), "shape"),
    "zero dimension": (400, TEXT, request({**text("a"), "shape": [0], "data": []}), "shape"),
    "boolean dimension": (400, TEXT, request({**text("a"), "shape": [True]}), "shape"),
    "fractional dimension": (400, TEXT, request({**text("a"), "shape": [1.0]}), "shape"),
    "huge dimension": (400, TEXT, request({**text("a"), "shape": [2**63]}), "32"),
    "huge product": (400, VISION, request({**pixels(_ZEROS), "shape": [1, 3, 2**62, 2**62]}), "elements"),
    "wrong fixed dimension": (400, VISION, request({**pixels(_ZEROS), "shape": [1, 1, 3, 4]}), "3, 'height'"),
    "inputs of different length": (400, TEXT, request(_IDS, {**_MASK, "shape": [1, 1], "data": [1]}), "attention_mask"),
    "too many rows": (400, TEXT, request(text(*["a"] * 33)), "NORMSCOPE_MAX_INPUTS"),
    "too little data": (400, TEXT, request({**text("a"), "shape": [2]}), "elements"),
    "number for text": (400, TEXT, request({**text("a"), "data": [1]}), "strings"),
    "string for a number": (400, TEXT, request({**_IDS, "data": ["5", "6"]}, _MASK), "integers"),
    "boolean for a number": (400, TEXT, request({**_IDS, "data": [True, 6]}, _MASK), "integers"),
    "integer out of range": (400, TEXT, request({**_IDS, "data": [2**63, 6]}, _MASK), "INT64"),
    "token that is not in the vocabulary": (400, TEXT, request({**_IDS, "data": [10**9, 6]}, _MASK), "cannot run"),
    "neither data nor binary": (400, TEXT, request({"name": "text", "datatype": "BYTES", "shape": [1]}), "neither"),
    "blank text": (400, TEXT, request(text(" ")), "blank"),
    "not base64": (400, VISION, request({**text("*"), "name": "encoded_image"}), "base64"),
    "no image": (400, VISION, request({**text("aGVsbG8="), "name": "encoded_image"}), "image"),
    "id not a string": (400, TEXT, request(text("a"), id=1), "id"),
    "parameters not an object": (400, TEXT, request(text("a"), parameters=[]), "parameters"),
    "parameter not a plain value": (400, TEXT, _parameters(custom={}), "custom"),
    "parameter of an input not a plain value": (400, TEXT, request({**text("a"), "parameters": {"x": []}}), "x"),
    "unknown level": (400, TEXT, _parameters(layer_statistics="all"), "summary"),
    "level not a string": (400, TEXT, _parameters(layer_statistics=True), "summary"),
    "timeout not an integer": (400, TEXT, _parameters(timeout="1000"), "timeout"),
    "negative timeout": (400, TEXT, _parameters(timeout=-1), "timeout"),
    "boolean timeout": (400, TEXT, _parameters(timeout=True), "timeout"),
    "priority not an integer": (400, TEXT, _parameters(priority="high"), "priority"),
    "binary_data_output not a boolean": (400, TEXT, _parameters(binary_data_output=1), "binary_data_output"),
    "sequence": (501, TEXT, _parameters(sequence_id=7), "sequence"),
    "sequence with a name": (501, TEXT, _parameters(sequence_id="a"), "sequence"),
    "start of a sequence": (501, TEXT, _parameters(sequence_start=True), "sequence"),
    "input in shared memory": (501, TEXT, request({**text("a"), "parameters": {"shared_memory_region": "r"}}), "shared memory"),
    "output in shared memory": (501, TEXT, _output("logits", shared_memory_region="r"), "shared memory"),
    "unknown output": (400, TEXT, _output("logit"), "logit"),
    "unknown statistic": (400, TEXT, _output("statistics.before.median"), "configuration"),
    "output twice": (400, TEXT, request(text("a"), outputs=[{"name": "logits"}] * 2), "twice"),
    "output not an object": (400, TEXT, request(text("a"), outputs=["logits"]), "outputs"),
    "binary_data not a boolean": (400, TEXT, _output("logits", binary_data="yes"), "binary_data"),
    "negative classification": (400, TEXT, _output("logits", classification=-1), "classification"),
    "classification of statistics": (400, TEXT, _output("statistics.before.mean", classification=2), "logits"),
}


@pytest.mark.parametrize("name", _WRONG)
def test_wrong_request(client: httpx.Client, name: str) -> None:
    """The status, one text that says what is wrong, and nothing else."""
    status, url, content, part = _WRONG[name]
    answer = client.post(url, json=content)
    assert answer.status_code == status, answer.text
    assert part in error(answer)


def _binary(data: bytes, size: object, length: object = None) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    content = json.dumps(request(entry)).encode()
    return content + data, {"Inference-Header-Content-Length": str(len(content) if length is None else length)}


_HELLO = elements(b"hello")
_BROKEN: dict[str, tuple[bytes, dict[str, str], str]] = {
    "no body": (b"", {}, "JSON"),
    "not JSON": (b"{", {}, "JSON"),
    "not UTF-8": (b'{"id": "\xff"}', {}, "JSON"),
    "surrogate": (b'{"id": "\\ud800"}', {}, "JSON"),
    "deeply nested": (b"[" * 100_000 + b"]" * 100_000, {}, "JSON"),
    "binary data without its header": (_binary(_HELLO, 9)[0], {}, "Inference-Header-Content-Length"),
    "length of JSON beyond the body": (*_binary(_HELLO, 9, 10_000), "bytes"),
    "length of JSON too short": (*_binary(_HELLO, 9, 5), "JSON"),
    "length of JSON negative": (*_binary(_HELLO, 9, -1), "bytes"),
    "length of JSON not a number": (*_binary(_HELLO, 9, "x"), "bytes"),
    "length of JSON endless": (*_binary(_HELLO, 9, "9" * 5000), "bytes"),
    "more binary data than told": (*_binary(_HELLO + b"x", 9), "9"),
    "less binary data than told": (*_binary(_HELLO, 10), "tell of 10"),
    "huge size": (*_binary(_HELLO, 2**64 - 1), "tell of"),
    "negative size": (*_binary(_HELLO, -9), "binary_data_size"),
    "size not a number": (*_binary(_HELLO, "9"), "binary_data_size"),
    "lying length of an element": (*_binary(b"\xff\xff\xff\xffhello", 9), "BYTES"),
    "two elements for one": (*_binary(_HELLO * 2, 18), "BYTES"),
    "text that is not UTF-8": (*_binary(elements(b"\xff"), 5), "UTF-8"),
    "raw text that is not UTF-8": (b"\xff", {"Inference-Header-Content-Length": "0"}, "UTF-8"),
    "raw text of nothing": (b"", {"Inference-Header-Content-Length": "0"}, "blank"),
    "not gzip": (b"{}", {"Content-Encoding": "gzip"}, "gzip"),
    "truncated gzip": (gzip.compress(b"{}")[:-1], {"Content-Encoding": "gzip"}, "truncated"),
    "unknown encoding": (b"{}", {"Content-Encoding": "br"}, "gzip"),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_broken_body(client: httpx.Client, name: str) -> None:
    """400 with a text that names what is broken."""
    body, headers, part = _BROKEN[name]
    answer = client.post(TEXT, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert part in error(answer)


def test_data_and_binary_data_at_once(client: httpx.Client) -> None:
    """One tensor comes in one way."""
    entry = {**text("hello"), "parameters": {"binary_data_size": len(_HELLO)}}
    content = json.dumps(request(entry)).encode()
    headers = {"Inference-Header-Content-Length": str(len(content))}
    assert "both" in error(client.post(TEXT, content=content + _HELLO, headers=headers))


def test_nonfinite_numbers(client: httpx.Client) -> None:
    """NaN and infinities are accepted in tensors, JSON or binary; outputs that are not finite go as binary data only."""
    values = _ZEROS.copy()
    values[0, 0] = np.nan, np.inf
    answer = client.post(VISION, content=json.dumps(request(pixels(values))))
    assert answer.status_code == 400
    assert "binary_data_output" in error(answer)
    output = {"name": "statistics.before.nonfinite"}
    body, headers = with_binary("image", "FP32", [1, 3, 2, 2], values.tobytes(), outputs=[output])
    counts = array(client.post(VISION, content=body, headers=headers), "statistics.before.nonfinite")
    assert counts[0, 0] > 0
    binary = client.post(VISION, content=json.dumps(request(pixels(values), parameters={"binary_data_output": True})))
    assert np.isnan(array(binary, "logits")).any()


def test_time_is_over(client: httpx.Client) -> None:
    """`timeout` is in microseconds; a request that is not answered by then is 504, 0 asks for nothing."""
    late = client.post(TEXT, json=_parameters(timeout=1))
    assert late.status_code == 504
    assert "1e-06 s" in error(late)
    assert client.post(TEXT, json=_parameters(timeout=0)).status_code == 200
    assert client.post(TEXT, json=_parameters(timeout=50_000_000)).status_code == 200


def test_limits(small_repository: SmallRepository) -> None:
    """Body size, also after decompression, rows and statistics: each limit names its setting."""
    limits = Settings(model_repository=small_repository.folder, max_body_bytes=2000, max_inputs=2, max_statistics_values=250)
    with running_server(limits) as client:
        large = client.post(TEXT, json=request(text("a" * 3000)))
        assert (large.status_code, "NORMSCOPE_MAX_BODY_BYTES" in error(large)) == (413, True)
        bomb = client.post(TEXT, content=gzip.compress(b" " * 3000), headers={"Content-Encoding": "gzip"})
        assert (bomb.status_code, "after decompression" in error(bomb)) == (413, True)
        rows = client.post(TEXT, json=request(text("a", "b", "c")))
        assert (rows.status_code, "NORMSCOPE_MAX_INPUTS" in error(rows)) == (400, True)
        assert client.get("/v2/models/text/config").json()["max_batch_size"] == 2
        for inputs, status in ((["a"], 200), (["a", "b"], 400)):
            answer = client.post(TEXT, json=request(text(*inputs), parameters={"layer_statistics": "summary"}))
            assert answer.status_code == status
        assert "NORMSCOPE_MAX_STATISTICS_VALUES" in error(answer)


def test_a_full_queue_is_503(small_repository: SmallRepository) -> None:
    """While one request is in hand, one more than `max_queue` is refused at once, with Retry-After."""
    with running_server(Settings(model_repository=small_repository.folder, max_queue=1)) as client:
        host, port = client.base_url.host, client.base_url.port
        body = json.dumps(request(text("hello"))).encode()
        head = f"POST {TEXT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        with socket.create_connection((host, port or 0)) as slow:
            slow.sendall(head.encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 100")  # its place in the queue is taken
            refused = client.post(TEXT, json=request(text("hello")))
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert "queue" in error(refused)
            slow.sendall(body)
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
        assert client.post(TEXT, json=request(text("hello"))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nope", 404),
        ("GET", "/v2/models/text/nope", 404),
        ("GET", "/v2/models/text/", 404),  # and no redirect, which would lose the body
        ("POST", "/v2/models/text/infer/", 404),
        ("GET", TEXT, 405),
        ("DELETE", "/v2", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/text/versions/9", 404),
        ("GET", "/v2/models/nope/config", 404),
        ("GET", "/v2/models/nope/stats", 404),
        ("GET", "/v2/models/nope/ready", 404),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("POST", "/v2/systemsharedmemory/region/r/register", 501),
        ("POST", "/v2/cudasharedmemory/region/r/unregister", 501),
        ("GET", "/v2/trace/setting", 501),
        ("POST", "/v2/models/text/trace/setting", 501),
        ("POST", "/v2/logging", 501),
    ],
)
def test_every_error_has_one_shape(client: httpx.Client, method: str, path: str, status: int) -> None:
    """Unknown routes and models, wrong methods and what is not offered: {"error": text} everywhere under /v2."""
    answer = client.request(method, path)
    assert answer.status_code == status
    assert error(answer)
