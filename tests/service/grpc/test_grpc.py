"""gRPC on a port of its own. Each client runs in a process of its own: protos of the package `inference` clash in one."""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from models.graph_import import ImportOptions, import_graph
from service.errors import OIP_STATUSES
from tests import graphs
from tests.conftest import SmallRepository
from tests.service.grpc.clients import __file__ as clients
from tests.service.test_server import ROOT, process, read_until
from tests.service.test_tracing import PARENT, TRACE, attributes, collector

_PACKAGES = ("grpc", "grpc_health", "grpc_reflection", "tritonclient")
_KEYS = {"NORMSCOPE_API_KEYS": "a-plain-key", "NORMSCOPE_ADMIN_API_KEYS": "an-admin-key"}
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, _PACKAGES)), reason="the extra grpc is not installed: pip install normscope[grpc]"
)


@contextmanager
def _grpc_server(repository: SmallRepository, *arguments: str, **environment: str) -> Iterator[dict[str, str]]:
    """A process that serves HTTP and gRPC on free ports, as the environment of clients; it must end with 0 after SIGTERM."""
    folder = str(repository.folder)
    options = ("--port", "0", "--grpc-port", "0", *arguments)
    with process(*options, NORMSCOPE_MODEL_REPOSITORY=folder, **environment) as started:
        url = read_until(started, r"running on (http://[\d.]+:\d+)")[1]
        address = read_until(started, r"gRPC running on ([\d.]+:\d+)")[1]
        while httpx.get(f"{url}/readyz").status_code != 200:
            pass
        threading.Thread(target=_drop, args=(started.stdout,)).start()
        yield {"TARGET_HTTP": url, "TARGET_GRPC": address, "TARGET_PROCESS": str(started.pid)}
        started.terminate()
        assert started.wait(60) == 0


def _drop(log: Iterable[str]) -> None:
    """Reads what a process writes: once the pipe was full, the process would stand still."""
    for _ in log:
        pass


def _run_client(name: str, environment: dict[str, str]) -> None:
    """Runs the tests in `clients/{name}.py`."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-q",
        str(Path(clients).with_name(f"{name}.py")),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def server(small_repository: SmallRepository) -> Iterator[dict[str, str]]:
    """One process for the clients that do not stop it."""
    with _grpc_server(small_repository) as started:
        yield started


@pytest.mark.parametrize("name", ["triton_sync", "triton_aio", "stubs", "standard", "broken"])
def test_client(server: dict[str, str], name: str) -> None:
    """What the client's own file promises."""
    _run_client(name, server)


def test_clients_that_leave_and_a_server_that_stops(small_repository: SmallRepository) -> None:
    """Calls that are cancelled, late, too many, or in hand at the end; the client starts servers whose runs it holds."""
    _run_client("held", {"NORMSCOPE_MODEL_REPOSITORY": str(small_repository.folder)})


def test_large_calls_hold_up_nobody() -> None:
    """The client starts a server in its own process, where it can hold what the server does."""
    _run_client("aside", {})


def test_each_request_has_a_span(small_repository: SmallRepository) -> None:
    """With a collector in the environment, each request over gRPC, also each of a stream, is one span by its method, below that of
    the client, with code, model and id, and with its phases below it; health has none."""
    with collector() as (address, got):
        with _grpc_server(small_repository, OTEL_EXPORTER_OTLP_ENDPOINT=address) as server:
            _run_client("traced", server | {"TRACEPARENT": f"00-{TRACE}-{PARENT}-01"})
        spans = [span for request in got for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]
    calls = [span for span in spans if "/" in span.name and "." in span.name]
    told = [(span.name.rpartition("/")[2], attributes(span), span.status.code) for span in calls]
    codes = [(name, about["rpc.response.status_code"], about.get("normscope.model"), status) for name, about, status in told]
    assert sorted(codes, key=str) == [
        ("ModelInfer", "OK", "text", Status.STATUS_CODE_UNSET),
        ("ModelReady", "OK", None, Status.STATUS_CODE_UNSET),
        ("ModelStreamInfer", "NOT_FOUND", None, Status.STATUS_CODE_UNSET),
        ("ModelStreamInfer", "OK", "text", Status.STATUS_CODE_UNSET),
        ("SystemSharedMemoryStatus", "UNIMPLEMENTED", None, Status.STATUS_CODE_ERROR),
    ]
    (served,) = [span for span in calls if span.name == "inference.GRPCInferenceService/ModelInfer"]
    assert (served.trace_id.hex(), served.parent_span_id.hex(), served.kind) == (TRACE, PARENT, Span.SPAN_KIND_SERVER)
    assert (
        attributes(served).items() >= {"rpc.system.name": "grpc", "rpc.method": served.name, "normscope.request_id": "r-3"}.items()
    )
    assert sorted(span.name for span in spans if span.parent_span_id == served.span_id) == ["inference", "prepare", "queue"]


def test_keys(small_repository: SmallRepository) -> None:
    """With keys set, only health is open."""
    with _grpc_server(small_repository, **_KEYS) as server:
        _run_client("keys", server)


def test_a_taken_port_is_an_error(small_repository: SmallRepository, server: dict[str, str]) -> None:
    """A port that another process has ends the process with status 1 and a message."""
    port = server["TARGET_GRPC"].rpartition(":")[2]
    with process("--port", "0", "--grpc-port", port, NORMSCOPE_MODEL_REPOSITORY=str(small_repository.folder)) as started:
        output, _ = started.communicate(timeout=60)
    assert started.returncode == 1
    assert f"gRPC cannot listen on 127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_without_the_extra(small_repository: SmallRepository, tmp_path: Path) -> None:
    """With a port set but without the packages, the process ends with status 1 and names the remedy."""
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\", name='grpc')\n")
    repository, path = str(small_repository.folder), os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with process("--grpc-port", "0", NORMSCOPE_MODEL_REPOSITORY=repository, PYTHONPATH=path) as started:
        output, _ = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "pip install normscope[grpc]" in output
    assert "Traceback" not in output


def test_every_error_has_a_code() -> None:
    """Each error of the service has a gRPC status code, in a process of its own."""
    names = [kind.__name__ for kind in OIP_STATUSES]
    code = "from service.grpc.codes import CODES; print([kind.__name__ for kind in CODES])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == f"{names}\n"


def test_imported_models(small_repository: SmallRepository, tmp_path: Path) -> None:
    """Any inputs and outputs, of every datatype, with and without a batch."""
    for name, model in (("types", graphs.types()), ("detector", graphs.detector())):
        import_graph(graphs.save(model, tmp_path / f"{name}.onnx"), tmp_path / "repository" / name / "1", ImportOptions())
    with _grpc_server(replace(small_repository, folder=tmp_path / "repository")) as environment:
        _run_client("imported", environment)
