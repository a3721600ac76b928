"""The server as Triton's own HTTP client sees it, sync and asyncio: every call that it has."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, aio
from tritonclient.utils import InferenceServerException

from service.settings import Settings
from tests.conftest import SmallRepository, running_server
from tests.networks import SENTENCES, TEXT_LABELS
from tests.service.api.oip.wire import TEXT, array, request, text
from tests.service.api.test_predict import image

_INFERENCE = {"infer", "async_infer", "generate_request_body", "parse_response_body"}
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "get_system_shared_memory_status": (),
    "register_system_shared_memory": ("region", "/key", 8),
    "unregister_system_shared_memory": (),
    "get_cuda_shared_memory_status": (),
    "register_cuda_shared_memory": ("region", b"handle", 0, 8),
    "unregister_cuda_shared_memory": (),
    "get_trace_settings": (),
    "update_trace_settings": (),
    "get_log_settings": (),
    "update_log_settings": ({},),
}
_CALLS: list[tuple[str, tuple[Any, ...], Callable[[Any], bool]]] = [
    # call, arguments, what holds of its result; in this order
    ("is_server_live", (), lambda live: live is True),
    ("is_server_ready", (), lambda ready: ready is True),
    ("is_model_ready", ("text",), lambda ready: ready is True),
    ("is_model_ready", ("text", "1"), lambda ready: ready is True),
    ("is_model_ready", ("nope",), lambda ready: ready is False),
    ("get_server_metadata", (), lambda metadata: metadata["name"] == "normscope"),
    ("get_model_metadata", ("text",), lambda metadata: metadata["versions"] == ["1"]),
    ("get_model_metadata", ("text", "1"), lambda metadata: metadata["outputs"][0]["name"] == "logits"),
    ("get_model_config", ("text",), lambda config: config["max_batch_size"] == 32),
    ("get_model_config", ("text", "1"), lambda config: config["input"][0]["optional"]),
    ("get_inference_statistics", (), lambda statistics: len(statistics["model_stats"]) == 2),
    ("get_inference_statistics", ("text",), lambda statistics: statistics["model_stats"][0]["name"] == "text"),
    ("get_inference_statistics", ("text", "1"), lambda statistics: statistics["model_stats"][0]["version"] == "1"),
    ("get_model_repository_index", (), lambda index: [entry["state"] for entry in index] == ["READY", "READY"]),
    ("unload_model", ("text",), lambda nothing: nothing is None),
    ("is_model_ready", ("text",), lambda ready: ready is False),
    ("load_model", ("text",), lambda nothing: nothing is None),
    ("is_model_ready", ("text",), lambda ready: ready is True),
]


@pytest.fixture(scope="module")
def server(small_repository: SmallRepository) -> Iterator[httpx.Client]:
    """A server of its own: the calls unload and load."""
    with running_server(Settings(model_repository=small_repository.folder)) as opened:
        yield opened


@pytest.fixture
def triton(server: httpx.Client) -> Iterator[InferenceServerClient]:
    """The sync client."""
    with InferenceServerClient(_address(server)) as opened:
        yield opened


def _address(server: httpx.Client) -> str:
    return f"{server.base_url.host}:{server.base_url.port}"


def _with_aio(server: httpx.Client, use: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with aio.InferenceServerClient(_address(server)) as opened:
            return await use(opened)

    return asyncio.run(run())


def _texts(*texts: str, binary: bool = True) -> InferInput:
    tensor = InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([each.encode() for each in texts], np.object_), binary_data=binary)
    return tensor


def _tokens(binary: bool) -> list[InferInput]:
    tensors = []
    for name, values in (("input_ids", [[5, 6, 7]]), ("attention_mask", [[1, 1, 1]])):
        tensors.append(InferInput(name, [1, 3], "INT64"))
        tensors[-1].set_data_from_numpy(np.array(values, np.int64), binary_data=binary)
    return tensors


@pytest.mark.parametrize("client", [InferenceServerClient, aio.InferenceServerClient])
def test_no_call_is_left_out(client: type) -> None:
    """Every public call of the clients is used below."""
    public = {name for name, _ in inspect.getmembers(client, inspect.isfunction) if not name.startswith("_")}
    about_the_client_itself = {"close", "plugin", "register_plugin", "unregister_plugin"}
    assert public - about_the_client_itself <= {call for call, _, _ in _CALLS} | _NOT_OFFERED.keys() | _INFERENCE


def test_calls(triton: InferenceServerClient) -> None:
    """Each call of the sync client that is no inference gives what it promises."""
    for call, arguments, holds in _CALLS:
        assert holds(getattr(triton, call)(*arguments)), call


def test_aio_calls(server: httpx.Client) -> None:
    """The same with the asyncio client."""

    async def use(client: Any) -> None:
        for call, arguments, holds in _CALLS:
            assert holds(await getattr(client, call)(*arguments)), call

    _with_aio(server, use)


@pytest.mark.parametrize("call", _NOT_OFFERED)
def test_calls_that_are_not_offered(server: httpx.Client, triton: InferenceServerClient, call: str) -> None:
    """Both clients raise the server's words with status 501."""
    with pytest.raises(InferenceServerException, match="not offered") as raised:
        getattr(triton, call)(*_NOT_OFFERED[call])
    assert raised.value.status() == "501"
    with pytest.raises(InferenceServerException, match="not offered"):
        _with_aio(server, lambda client: getattr(client, call)(*_NOT_OFFERED[call]))


@pytest.mark.parametrize("binary", [True, False])
def test_infer(server: httpx.Client, triton: InferenceServerClient, binary: bool) -> None:
    """Texts and tokens, binary and JSON both ways, sync and asyncio: the logits that plain JSON gives."""
    expected = array(server.post(TEXT, json=request(text(*SENTENCES))), "logits")
    outputs = [InferRequestedOutput("logits", binary_data=binary)]
    result = triton.infer("text", [_texts(*SENTENCES, binary=binary)], outputs=outputs, request_id="42")
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-5)
    assert result.get_response()["id"] == "42"
    assert triton.infer("text", _tokens(binary), model_version="1").as_numpy("logits").shape == (1, 3)
    again = _with_aio(server, lambda client: client.infer("text", [_texts(*SENTENCES, binary=binary)], outputs=outputs))
    np.testing.assert_allclose(again.as_numpy("logits"), expected, atol=1e-5)


def test_infer_images(triton: InferenceServerClient) -> None:
    """A batch of image files as binary data."""
    files = InferInput("encoded_image", [2], "BYTES")
    files.set_data_from_numpy(np.array([image(), image("JPEG")], np.object_))
    assert triton.infer("vision", [files]).as_numpy("logits").shape == (2, 3)


def test_async_infer(triton: InferenceServerClient) -> None:
    """Several requests at once by the sync client's own threads."""
    pending = [triton.async_infer("text", [_texts(sentence)]) for sentence in SENTENCES]
    for sentence, each in zip(SENTENCES, pending, strict=True):
        expected = triton.infer("text", [_texts(sentence)]).as_numpy("logits")
        np.testing.assert_allclose(each.get_result().as_numpy("logits"), expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(server: httpx.Client, triton: InferenceServerClient, algorithm: str) -> None:
    """Requests and answers compressed, by both clients."""
    options = {
        "request_compression_algorithm": algorithm,
        "response_compression_algorithm": algorithm,
        "parameters": {"layer_statistics": "summary"},
    }
    expected = triton.infer("text", [_texts("hello")], parameters={"layer_statistics": "summary"}).as_numpy("statistics.after.mean")
    result = triton.infer("text", [_texts("hello")], **options)
    np.testing.assert_allclose(result.as_numpy("statistics.after.mean"), expected, atol=1e-5)
    again = _with_aio(server, lambda client: client.infer("text", [_texts("hello")], **options))
    np.testing.assert_allclose(again.as_numpy("statistics.after.mean"), expected, atol=1e-5)


def test_classification_and_statistics(triton: InferenceServerClient) -> None:
    """`class_count` gives `value:index:label`; a statistic is asked for by name."""
    outputs = [InferRequestedOutput("logits", class_count=2), InferRequestedOutput("statistics.before.count")]
    result = triton.infer("text", [_texts("hello", "what")], outputs=outputs)
    classes = result.as_numpy("logits")
    assert classes.shape == (2, 2)
    _, index, label = classes[0, 0].decode().split(":")
    assert TEXT_LABELS[int(index)] == label
    assert result.as_numpy("statistics.before.count").shape == (2, 5)


def test_bodies_made_by_the_client(server: httpx.Client) -> None:
    """What `generate_request_body` makes can be posted by hand, and `parse_response_body` reads the answer."""
    body, length = InferenceServerClient.generate_request_body([_texts("hello")])
    answer = server.post(TEXT, content=body, headers={"Inference-Header-Content-Length": str(length)})
    header = int(answer.headers["Inference-Header-Content-Length"])
    assert InferenceServerClient.parse_response_body(answer.content, header_length=header).as_numpy("logits").shape == (1, 3)


def test_errors(server: httpx.Client, triton: InferenceServerClient) -> None:
    """The server's words and status reach the caller; shared memory, sequences and a configuration with a load are refused."""
    shared = InferInput("text", [1], "BYTES")
    shared.set_shared_memory("region", 8)
    wrong: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: triton.infer("nope", [_texts("hello")]), "404", "nope"),
        (lambda: triton.infer("text", [_texts(" ")]), "400", "blank"),
        (lambda: triton.infer("text", [shared]), "501", "shared memory"),
        (lambda: triton.infer("text", [_texts("hello")], sequence_id=3, sequence_start=True), "501", "sequence"),
        (lambda: triton.infer("text", [_texts("hello")], timeout=1), "504", "within"),
        (lambda: triton.get_model_metadata("nope"), "404", "nope"),
        (lambda: triton.load_model("text", config="{}"), "501", "config"),
        (lambda: triton.load_model("text", config="{}", files={"file:1/model.onnx": b"x"}), "501", "text|config|file"),
    ]
    for call, status, words in wrong:
        with pytest.raises(InferenceServerException, match=words) as raised:
            call()
        assert raised.value.status() == status
    with pytest.raises(InferenceServerException, match="nope"):
        _with_aio(server, lambda client: client.infer("nope", [_texts("hello")]))
