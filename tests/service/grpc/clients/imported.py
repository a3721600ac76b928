"""Imported models over gRPC: every datatype there and back, and a detector with a scalar input and outputs of any length."""

from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from tests.service.grpc.clients.target import ADDRESS

_NUMPY = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BOOL": "bool", "BYTES": "object"}


@pytest.fixture
def triton() -> Iterator[InferenceServerClient]:
    """The sync client."""
    with InferenceServerClient(ADDRESS) as opened:
        yield opened


def test_every_datatype_goes_in_and_comes_out(triton: InferenceServerClient) -> None:
    """Each tensor comes back as it was sent."""
    feed, inputs = {}, []
    for tensor in triton.get_model_metadata("types").inputs:
        dtype = _NUMPY.get(tensor.datatype, tensor.datatype.lower())
        value = np.array([["a", "b"]], object) if dtype == "object" else np.array([[0, 1]]).astype(dtype)
        feed[tensor.name] = value
        inputs.append(InferInput(tensor.name, list(value.shape), tensor.datatype))
        inputs[-1].set_data_from_numpy(value)
    assert len(feed) == 13
    answer = triton.infer("types", inputs)
    for name, value in feed.items():
        got = answer.as_numpy(name.replace("of_", "same_"))
        assert got.astype(str).tolist() == value.astype(str).tolist() or got.tolist() == [[b"a", b"b"]]
        assert got.dtype == value.dtype


def test_a_detector(triton: InferenceServerClient) -> None:
    """It has no batch: its configuration says so, its outputs come whole, with the statistics of its layers."""
    assert triton.get_model_config("detector").config.max_batch_size == 0
    boxes = np.random.default_rng(3).standard_normal((1, 6, 4)).astype(np.float32)
    inputs = [InferInput("boxes", [1, 6, 4], "FP32"), InferInput("threshold", [], "FP32")]
    inputs[0].set_data_from_numpy(boxes)
    inputs[1].set_data_from_numpy(np.array(1.2, np.float32))
    answer = triton.infer("detector", inputs, parameters={"layer_statistics": "summary"})
    index = answer.as_numpy("index")
    assert 0 < len(index) < 6
    assert answer.as_numpy("detections").shape == (len(index), 4)
    assert answer.as_numpy("statistics.before.count").tolist() == [[24]]
    with pytest.raises(InferenceServerException, match="send boxes and threshold"):
        triton.infer("detector", inputs[:1])
