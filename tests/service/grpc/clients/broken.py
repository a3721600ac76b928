"""Broken messages by the hundred, by the seed: always the client's error, and the server goes on."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.broken import Random, damaged, integers, no_images, photos
from tests.service.api.oip.wire import elements
from tests.service.grpc.clients.target import ADDRESS

_SERVICE = "/inference.GRPCInferenceService/"
_CLIENTS = {
    StatusCode.OK,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.UNIMPLEMENTED,
    StatusCode.RESOURCE_EXHAUSTED,
}
_METHODS = ["ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "ServerMetadata"]
_SEEDS = range(6)
_EACH = 60


@pytest.fixture(scope="module")
def channel() -> Iterator[Any]:
    """A channel that sends bytes; typed for generated messages alone."""
    with grpc.insecure_channel(ADDRESS) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _goes_on(channel: Any) -> Iterator[None]:
    """After each test a good request is answered."""
    yield
    assert _code(channel, "ModelInfer", _text(b"hello").SerializeToString()) is StatusCode.OK


def _code(channel: Any, method: str, message: bytes) -> StatusCode:
    """How a call with this message ends; an error has a text."""
    try:
        channel.unary_unary(_SERVICE + method)(message, timeout=60)
    except grpc.RpcError as error:
        call: Any = error  # its types do not tell that it is the call, too
        assert call.details()
        code: StatusCode = call.code()
        return code
    return StatusCode.OK


def _text(*values: bytes) -> Any:
    request = ModelInferRequest(model_name="text", id="1")
    request.inputs.add(name="text", datatype="BYTES", shape=[len(values)], contents={"bytes_contents": values})
    request.parameters["layer_statistics"].string_param = "summary"
    request.outputs.add(name="logits").parameters["classification"].int64_param = 2
    return request


def _raw(random: Random) -> Any:
    """Tokens, pixels or a photo in raw contents."""
    ids = b"".join((each & (2**64 - 1)).to_bytes(8, "little") for each in integers(random, 6))
    photo = photos()[int(random.integers(len(photos())))]
    kinds = [
        ("text", [("input_ids", "INT64", [2, 3], ids), ("attention_mask", "INT64", [2, 3], np.ones(6, "<i8").tobytes())]),
        ("vision", [("image", "FP32", [1, 3, 4, 4], random.bytes(4 * 48))]),
        ("vision", [("encoded_image", "BYTES", [1], elements(damaged(random, photo)))]),
    ]
    model, tensors = kinds[int(random.integers(len(kinds)))]
    request = ModelInferRequest(model_name=model)
    for name, datatype, shape, data in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    return request


def _lie(random: Random, request: Any) -> Any:
    """The request with a shape, a datatype, a name, a length or a parameter that is wrong."""
    tensor = request.inputs[int(random.integers(len(request.inputs)))]
    match int(random.integers(7)):
        case 0:
            tensor.shape[:] = [max(min(each, 2**63 - 1), -(2**63)) for each in integers(random, int(random.integers(6)))]
        case 1:
            tensor.datatype = ["", "FP16", "BF16", "BYTES", "INT64", "FP32", "x" * 100_000][int(random.integers(7))]
        case 2:
            tensor.name = ["", "image", "text", "\0", "x" * 100_000][int(random.integers(5))]
        case 3:
            contents: list[dict[str, Any]] = [
                {"fp32_contents": [1.0]},
                {"bytes_contents": [b"\xff"]},
                {"int64_contents": [1]},
                {"bool_contents": [True]},
            ]
            tensor.contents.MergeFrom(type(tensor.contents)(**contents[int(random.integers(4))]))
        case 4:
            request.raw_input_contents.append(random.bytes(9))
        case 5:
            tensor.parameters["binary_data_size"].int64_param = integers(random, 1)[0] % 2**63
        case 6:
            request.model_name, request.model_version = ["x" * 1_000_000, "text"][int(random.integers(2))], "\U0001f600" * 10_000
    return request


@pytest.mark.parametrize("seed", _SEEDS)
def test_lies(channel: Any, seed: int) -> None:
    """Shapes, datatypes, names, lengths and contents that do not fit each other, and photos that are damaged."""
    random = np.random.default_rng(seed)
    for i in range(_EACH):
        request = _lie(random, _raw(random) if i % 2 else _text(b"hello", b"what"))
        assert _code(channel, "ModelInfer", request.SerializeToString()) in _CLIENTS, request


@pytest.mark.parametrize("seed", _SEEDS)
def test_damaged_messages(channel: Any, seed: int) -> None:
    """Messages that are cut or changed, to every kind of method."""
    random = np.random.default_rng(seed)
    for i in range(_EACH):
        message = damaged(random, (_raw(random) if i % 2 else _text(b"hello")).SerializeToString())
        for method in ("ModelInfer", _METHODS[i % len(_METHODS)]):
            assert _code(channel, method, message) in _CLIENTS, (method, message)


@pytest.mark.parametrize("name", no_images())
def test_what_is_no_image(channel: Any, name: str) -> None:
    """Other files, bombs and huge declared sizes are INVALID_ARGUMENT."""
    request = ModelInferRequest(model_name="vision", raw_input_contents=[elements(no_images()[name])])
    request.inputs.add(name="encoded_image", datatype="BYTES", shape=[1])
    assert _code(channel, "ModelInfer", request.SerializeToString()) is StatusCode.INVALID_ARGUMENT


def test_damaged_messages_in_a_stream(channel: Any) -> None:
    """Each is answered by an error of its own, and the good ones among them are served."""
    random = np.random.default_rng(0)
    good = _text(b"hello").SerializeToString()
    messages = [good if i % 2 else b"\xff" + damaged(random, good) for i in range(20)]
    answers = list(channel.stream_stream(_SERVICE + "ModelStreamInfer")(iter(messages)))
    assert [b"is not of the type" in answer for answer in answers] == [True, False] * 10


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/nope/Nope", _SERVICE + "Nope", "/inference/x"])
def test_other_methods(channel: Any, method: str) -> None:
    """Broken messages to the health service, and calls of methods that are not there."""
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(method)(b"\xff\xff", timeout=60)
    error: Any = raised.value
    assert error.code() in _CLIENTS
