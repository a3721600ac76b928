import itertools
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.settings import Settings
from service.tracing import tracing_from
from tests.conftest import SmallRepository, running_server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector of traces on a free port: its address, and what it has got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, str | int]:
    """The texts and whole numbers among the attributes of a span."""
    return {entry.key: entry.value.string_value or entry.value.int_value for entry in span.attributes}


def test_each_request_has_a_span(small_repository: SmallRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a collector in the environment, each request is one span by its route, below that of the client, with model, status and
    request id, and with its phases below it; health checks have none; the last are sent before the end."""
    with collector() as (address, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with running_server(Settings(model_repository=small_repository.folder)) as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "r-3"}
            assert client.post("/v1/models/text/predict", json={"inputs": "hello"}, headers=headers).status_code == 200
            assert client.get("/v1/models/none").status_code == 404
            assert client.get("/readyz").status_code == 200
        resources = [part.resource for request in got for part in request.resource_spans]
        spans = [span for request in got for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]
    named = {span.name: span for span in spans}
    assert sorted(span.name for span in spans) == [
        "GET /v1/models/{model}",
        "POST /v1/models/{model}/predict",
        "inference",
        "prepare",
        "queue",
    ]
    served = named["POST /v1/models/{model}/predict"]
    assert (served.trace_id.hex(), served.parent_span_id.hex()) == (TRACE, PARENT)
    told = attributes(served)
    assert told["http.route"] == "/v1/models/{model}/predict"
    assert told["http.response.status_code"] == 200
    assert told["normscope.model"] == "text"
    assert told["normscope.request_id"] == "r-3"
    phases = [named[name] for name in ("prepare", "queue", "inference")]
    assert {phase.parent_span_id for phase in phases} == {served.span_id}
    for earlier, later in itertools.pairwise(phases):
        assert earlier.end_time_unix_nano == later.start_time_unix_nano
    assert attributes(named["GET /v1/models/{model}"])["http.response.status_code"] == 404
    assert {(entry.key, entry.value.string_value) for entry in resources[0].attributes} >= {("service.name", "normscope")}


def test_a_collector_that_is_gone_harms_nobody(small_repository: SmallRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered, and the service ends, although no span can be sent."""
    with collector() as (address, _):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with running_server(Settings(model_repository=small_repository.folder)) as client:
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    "environment",
    [
        {},
        _ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
        _ENDPOINT | {"OTEL_SDK_DISABLED": "True"},
        {"OTEL_SERVICE_NAME": "mine"},
    ],
)
def test_no_traces_unless_they_are_asked_for(environment: Mapping[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Without a collector, with the exporter none or the SDK disabled there are no traces, and not a word of it."""
    assert tracing_from(environment, "1") is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("environment", "remedy"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "otlp or none"),
        (_ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_what_is_not_offered_is_said(environment: Mapping[str, str], remedy: str, caplog: pytest.LogCaptureFixture) -> None:
    """Another exporter or protocol: a warning that names the remedy, and no traces."""
    assert tracing_from(environment, "1") is None
    assert [(record.levelno, remedy in record.getMessage()) for record in caplog.records] == [(logging.WARNING, True)]


def test_the_service_runs_without_the_extra(
    small_repository: SmallRepository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Traces are asked for but their packages are missing: a warning that says what to install, and the service serves."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv(*_ENDPOINT.copy().popitem())
    with running_server(Settings(model_repository=small_repository.folder)) as client:
        assert client.get("/v1/models").status_code == 200
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in warnings if "normscope[otel]" in line]
