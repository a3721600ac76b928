"""The server as Triton's own gRPC client sees it: every call that it has."""

import queue
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from tests.service.grpc.clients.target import ADDRESS, CALLS, NOT_OFFERED, URL, public_calls, texts

_INFERENCE = {"infer", "async_infer", "start_stream", "stop_stream", "async_stream_infer"}


@pytest.fixture
def triton() -> Iterator[InferenceServerClient]:
    """A client of the server, closed after the test."""
    with InferenceServerClient(ADDRESS) as opened:
        yield opened


def test_no_call_is_left_out() -> None:
    """Every public call of the client is used below."""
    assert public_calls(InferenceServerClient) <= {call for call, _, _ in CALLS} | NOT_OFFERED.keys() | _INFERENCE


def test_calls(triton: InferenceServerClient) -> None:
    """Each call that is no inference gives what it promises."""
    for call, arguments, holds in CALLS:
        assert holds(getattr(triton, call)(*arguments)), call


@pytest.mark.parametrize("call", NOT_OFFERED)
def test_calls_that_are_not_offered(triton: InferenceServerClient, call: str) -> None:
    """The server says so in words, with UNIMPLEMENTED."""
    with pytest.raises(InferenceServerException, match="not offered") as raised:
        getattr(triton, call)(*NOT_OFFERED[call])
    assert raised.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_the_answer_is_that_of_http(triton: InferenceServerClient, compression: str | None) -> None:
    """Logits, classes and layer statistics of the same texts agree over both protocols; the id comes back."""
    sentences = ["hello", "what is my balance"]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": sentences}
    body = {"inputs": [tensor], "parameters": {"layer_statistics": "summary"}}
    expected = httpx.post(f"{URL}/v2/models/text/infer", json=body).json()["outputs"]
    result = triton.infer(
        "text",
        [texts(*sentences)],
        parameters={"layer_statistics": "summary"},
        request_id="42",
        compression_algorithm=compression,
    )
    assert result.get_response().id == "42"
    assert [output.name for output in result.get_response().outputs] == [output["name"] for output in expected]
    for output in expected:
        values = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_allclose(result.as_numpy(output["name"]), values, rtol=1e-4, atol=1e-5, err_msg=output["name"])
    outputs = [{"name": "logits", "parameters": {"classification": 2}}]
    classes = httpx.post(f"{URL}/v2/models/text/infer", json={"inputs": [tensor], "outputs": outputs}).json()["outputs"][0]["data"]
    result = triton.infer("text", [texts(*sentences)], outputs=[InferRequestedOutput("logits", class_count=2)])
    assert [each.decode().split(":")[1:] for each in result.as_numpy("logits").ravel()] == [each.split(":")[1:] for each in classes]


def test_raw_tensors_and_versions(triton: InferenceServerClient) -> None:
    """Several raw inputs in one request, to a named version."""
    tensors = []
    for name in ("input_ids", "attention_mask"):
        tensors.append(InferInput(name, [1, 3], "INT64"))
        tensors[-1].set_data_from_numpy(np.ones((1, 3), np.int64))
    result = triton.infer("text", tensors, model_version="1")
    assert result.as_numpy("logits").shape == (1, 3)
    assert result.get_response().model_version == "1"


def test_async_infer(triton: InferenceServerClient) -> None:
    """Several requests at once, each with its own answer."""
    answers: queue.Queue[tuple[str, InferResult | None]] = queue.Queue()
    for sentence in ("hello", "what", "my balance"):

        def keep(result: InferResult | None, error: InferenceServerException | None, sentence: str = sentence) -> None:
            answers.put((sentence, result))

        triton.async_infer("text", [texts(sentence)], keep)
    for sentence, result in [answers.get(timeout=60) for _ in range(3)]:
        assert result is not None
        expected = triton.infer("text", [texts(sentence)]).as_numpy("logits")
        np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-5)


def test_stream(triton: InferenceServerClient) -> None:
    """Requests of a stream are answered in order, a wrong one by an error that does not end the stream."""
    answers: queue.Queue[tuple[InferResult | None, InferenceServerException | None]] = queue.Queue()
    triton.start_stream(callback=lambda result, error: answers.put((result, error)))
    triton.async_stream_infer("text", [texts("hello")], request_id="first")
    triton.async_stream_infer("nope", [texts("hello")], request_id="second")
    triton.async_stream_infer("text", [texts("what")], request_id="third")
    (first, _), (_, second), (third, _) = [answers.get(timeout=60) for _ in range(3)]
    triton.stop_stream()
    assert first is not None
    assert third is not None
    assert (first.get_response().id, third.get_response().id) == ("first", "third")
    assert first.get_response().parameters["triton_final_response"].bool_param
    assert "no model is named 'nope'" in str(second)


def test_errors(triton: InferenceServerClient) -> None:
    """The server's words and code reach the caller."""
    shared = InferInput("text", [1], "BYTES")
    shared.set_shared_memory("region", 8)
    sequence = {"sequence_id": 3, "sequence_start": True}
    wrong: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: triton.infer("nope", [texts("hello")]), "NOT_FOUND", "nope"),
        (lambda: triton.infer("text", [texts("hello")], model_version="9"), "NOT_FOUND", "text/9"),
        (lambda: triton.infer("text", [texts(" ")]), "INVALID_ARGUMENT", "blank"),
        (lambda: triton.infer("text", [InferInput("text", [1], "BYTES")]), "INVALID_ARGUMENT", "elements"),
        (lambda: triton.infer("text", [shared]), "UNIMPLEMENTED", "shared memory"),
        (lambda: triton.infer("text", [texts("hello")], **sequence), "UNIMPLEMENTED", "sequence"),
        (lambda: triton.infer("text", [texts("hello")], timeout=1), "DEADLINE_EXCEEDED", "within"),
        (lambda: triton.get_model_metadata("nope"), "NOT_FOUND", "nope"),
        (lambda: triton.get_inference_statistics("nope"), "NOT_FOUND", "nope"),
        (lambda: triton.load_model("text", config="{}"), "UNIMPLEMENTED", "config"),
    ]
    for call, code, words in wrong:
        with pytest.raises(InferenceServerException, match=words) as raised:
            call()
        assert raised.value.status() == f"StatusCode.{code}"


def test_statistics_and_metrics_count(triton: InferenceServerClient) -> None:
    """A request counts in the statistics of its model, and in the metrics by method, model and code."""

    def requests() -> int:
        return int(triton.get_inference_statistics("vision").model_stats[0].inference_stats.success.count)

    before = requests()
    image = InferInput("image", [1, 3, 32, 32], "FP32")
    image.set_data_from_numpy(np.zeros((1, 3, 32, 32), np.float32))
    assert triton.infer("vision", [image]).as_numpy("logits").ndim == 2
    assert requests() == before + 1
    metrics = httpx.get(f"{URL}/metrics").text
    assert 'normscope_requests_total{method="GRPC",model="vision",route="ModelInfer",status="OK"}' in metrics
    assert 'normscope_requests_total{method="GRPC",model="",route="ModelInfer",status="NOT_FOUND"}' in metrics
