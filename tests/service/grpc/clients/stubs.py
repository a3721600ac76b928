"""The server as the generated stubs see it: typed contents, deadlines, limits, and requests that no well-meant client makes."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelConfigRequest, ModelInferRequest, ModelMetadataRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.service.grpc.clients.target import ADDRESS, URL


@pytest.fixture
def stub() -> Iterator[Any]:
    """Of the service, with a channel that sends messages of any size."""
    with grpc.insecure_channel(ADDRESS, [("grpc.max_send_message_length", -1)]) as channel:
        yield GRPCInferenceServiceStub(channel)


def _request(*tensors: tuple[str, str, list[int], dict[str, Any]], model: str = "text", **fields: Any) -> Any:
    request = ModelInferRequest(model_name=model, **fields)
    for name, datatype, shape, contents in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape, contents=contents or None)
    return request


def _text(*values: bytes, **fields: Any) -> Any:
    return _request(("text", "BYTES", [len(values)], {"bytes_contents": values}), **fields)


def test_typed_contents(stub: Any) -> None:
    """Texts, tokens and pixels in typed contents give what raw contents give; NaN is taken."""
    assert list(stub.ModelInfer(_text(b"hello", b"what")).outputs[0].shape) == [2, 3]
    shape, ids = [1, 3], {"int64_contents": [5, 6, 7]}
    typed = stub.ModelInfer(
        _request(("input_ids", "INT64", shape, ids), ("attention_mask", "INT64", shape, {"int64_contents": [1, 1, 1]}))
    )
    raw = _request(("input_ids", "INT64", shape, {}), ("attention_mask", "INT64", shape, {}))
    raw.raw_input_contents.extend([np.array([5, 6, 7], "<i8").tobytes(), np.ones(3, "<i8").tobytes()])
    expected = np.frombuffer(stub.ModelInfer(raw).raw_output_contents[0], np.float32)
    np.testing.assert_allclose(np.frombuffer(typed.raw_output_contents[0], np.float32), expected, atol=1e-5)
    for size in (32, 128):  # the second is read off the event loop
        pixels = ("image", "FP32", [1, 3, size, size], {"fp32_contents": [float("nan")] + [0.5] * (3 * size * size - 1)})
        assert stub.ModelInfer(_request(pixels, model="vision")).outputs[0].datatype == "FP32"


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        (_request, "inputs are none"),
        (lambda: _request(("nope", "BYTES", [1], {})), "nope"),
        (lambda: _request(("text", "FP16", [1], {})), "FP16"),
        (lambda: _request(("text", "BYTES", [1], {"fp32_contents": [1]})), "fp32_contents"),
        (lambda: _request(("text", "BYTES", [1], {"bytes_contents": [b"x"], "fp32_contents": [1]})), "fp32_contents"),
        (lambda: _request(("text", "BYTES", [2], {"bytes_contents": [b"x"]})), "2 elements"),
        (lambda: _request(("text", "BYTES", [-1], {"bytes_contents": [b"x"]})), "shape"),
        (lambda: _text(b"\xff"), "UTF-8"),
        (lambda: _text(b"x", raw_input_contents=[b"\1\0\0\0x"]), "beside raw_input_contents"),
        (lambda: _text(b"x", raw_input_contents=[b"x", b"y"]), "2 raw_input_contents for 1"),
        (lambda: _request(("text", "BYTES", [1], {}), raw_input_contents=[b"\xff\xff\xff\xffx"]), "elements of BYTES"),
        (lambda: _request(("image", "FP32", [1, 3, 9, 9], {"fp32_contents": [1]}), model="vision"), "1 elements"),
    ],
)
def test_wrong_requests(stub: Any, request_of: Callable[[], Any], words: str) -> None:
    """Each is INVALID_ARGUMENT, in words that name what is wrong."""
    with pytest.raises(grpc.RpcError, match=words) as raised:
        stub.ModelInfer(request_of())
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_too_large_a_message(stub: Any, compression: grpc.Compression) -> None:
    """More than `max_body_bytes`, as it comes or decompressed, is RESOURCE_EXHAUSTED."""
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(_text(b"\0" * 30_000_000), compression=compression)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_deadline_of_the_client(stub: Any) -> None:
    """A call whose time is over ends, and counts as one that failed; the next one is served."""
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(_text(b"hello"), timeout=0.000001)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert stub.ModelInfer(_text(b"hello"), timeout=60).model_name == "text"


def test_ids(stub: Any) -> None:
    """The id of a request comes back in the trailing metadata, or a new one; also beside an error."""
    _, call = stub.ModelInfer.with_call(_text(b"hello"), metadata=[("x-request-id", "mine")])
    assert ("x-request-id", "mine") in call.trailing_metadata()
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(_text(b"hello", model="nope"))
    error: Any = raised.value  # its types do not tell that it is the call, too
    (identity,) = [value for name, value in error.trailing_metadata() if name == "x-request-id"]
    assert len(identity) == 24


def test_the_metadata_are_those_of_http(stub: Any) -> None:
    """Metadata and configuration of a model say the same over both protocols."""
    metadata = stub.ModelMetadata(ModelMetadataRequest(name="text"))
    expected = httpx.get(f"{URL}/v2/models/text").json()
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
        (each["name"], each["datatype"], each["shape"]) for each in expected["inputs"]
    ]
    config = stub.ModelConfig(ModelConfigRequest(name="text")).config
    expected = httpx.get(f"{URL}/v2/models/text/config").json()
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        name: value["string_value"] for name, value in expected["parameters"].items()
    }
