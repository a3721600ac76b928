"""Large tensors over gRPC: reading them and making large outputs hold up no other call; the server runs in this process."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, RepositoryModelUnloadRequest, ServerLiveRequest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from models.graph_import import ImportOptions, import_graph
from service.app import create_app
from service.grpc import inference
from service.settings import Settings
from tests import graphs
from tests.conftest import running_app
from tests.held import held_calls


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a server of one model, which takes tensors of any length and gives as much."""
    folder = tmp_path_factory.mktemp("large")
    import_graph(graphs.save(graphs.block(), folder / "block.onnx"), folder / "repository" / "block" / "1", ImportOptions())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    app = create_app(Settings(model_repository=folder / "repository", grpc_port=port))
    with running_app(app), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", ["parse_request", "make_inference"])
def test_other_calls_are_answered_meanwhile(stub: Any, name: str, raw: bool) -> None:
    """Raw contents as well as typed ones."""
    values = np.random.default_rng(3).standard_normal((1, 3000, graphs.WIDTH)).astype(np.float32)
    request = ModelInferRequest(model_name="block")
    contents = None if raw else {"fp32_contents": values.ravel()}
    request.inputs.add(name="x", datatype="FP32", shape=values.shape, contents=contents)
    if raw:
        request.raw_input_contents.append(values.tobytes())
    with held_calls(inference, name) as held:
        large = stub.ModelInfer.future(request)
        held.began.acquire()
        assert stub.ServerLive(ServerLiveRequest(), timeout=60).live
        held.release()
        assert list(large.result().outputs[0].shape) == [1, 3000, graphs.WIDTH]


def test_changes_that_wait_hold_up_nobody(tmp_path: Path) -> None:
    """While many calls wait to unload a model that has a request in hand, large messages to another are read and answered."""
    for name in ("block", "other"):
        import_graph(graphs.save(graphs.block(), tmp_path / f"{name}.onnx"), tmp_path / "repository" / name / "1", ImportOptions())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    app = create_app(Settings(model_repository=tmp_path / "repository", grpc_port=port))
    values = np.ones((1, 3000, graphs.WIDTH), np.float32)
    request = ModelInferRequest(model_name="block", raw_input_contents=[values.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=values.shape)
    with running_app(app), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        with app.state.normscope.repository.reserve("other"):
            changes = [stub.RepositoryModelUnload.future(RepositoryModelUnloadRequest(model_name="other")) for _ in range(50)]
            assert stub.ServerLive(ServerLiveRequest(), timeout=60).live  # the calls above have begun: they share a connection
            assert list(stub.ModelInfer(request, timeout=60).outputs[0].shape) == [1, 3000, graphs.WIDTH]
        for change in changes:
            change.result(timeout=60)
