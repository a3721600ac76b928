"""Calls whose spans `test_grpc.py` looks at, the first with its `traceparent`."""

import os
from typing import Any

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelReadyRequest, ServerLiveRequest, SystemSharedMemoryStatusRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.service.grpc.clients.target import ADDRESS


def _request(model: str) -> Any:
    request = ModelInferRequest(model_name=model)
    request.inputs.add(name="text", datatype="BYTES", shape=[1], contents={"bytes_contents": [b"hello"]})
    return request


def test_calls() -> None:
    """One that is served, one that is not, one without traces, and a stream of two."""
    metadata = [("traceparent", os.environ["TRACEPARENT"]), ("x-request-id", "r-3")]
    with grpc.insecure_channel(ADDRESS) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(_request("text"), metadata=metadata).model_name == "text"
        assert not stub.ModelReady(ModelReadyRequest(name="nope")).ready
        with pytest.raises(grpc.RpcError):
            stub.SystemSharedMemoryStatus(SystemSharedMemoryStatusRequest())
        assert stub.ServerLive(ServerLiveRequest()).live
        answers = list(stub.ModelStreamInfer(iter([_request("text"), _request("nope")])))
    assert [bool(answer.error_message) for answer in answers] == [False, True]
