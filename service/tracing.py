"""OpenTelemetry traces, if the standard `OTEL_` environment asks for them: that environment in, spans out to a collector.

Asked for is tracing by OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_TRACES_EXPORTER=otlp, unless
OTEL_TRACES_EXPORTER=none or OTEL_SDK_DISABLED=true. It needs the extra `otel`; without it, and for an exporter or a protocol other
than OTLP over HTTP, the service says so once and runs without traces. Everything else is left to the SDK, which reads its own
variables: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_... and others.

FastAPI opens a span for each request, below that of the client if `traceparent` names one. This module adds route, model and
request id, and below it one span for each of preparing, queue and inference. A request over gRPC, also each of a stream, has a span
of the same kind that is opened here. Health checks and /metrics have no spans.
"""

import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from service.engine.model import Timing

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace import TracerProvider

_log = logging.getLogger("normscope")
_UNTRACED = ("/livez", "/readyz", "/metrics", "/v2/health/")
UNTRACED: "TelemetryConfig" = {"tracing": False, "metrics": False, "logs": False}
"""The argument `telemetry` of an app without traces."""


class Tracing:
    """The spans of one app. The methods but `close` add to the span of the request that calls them."""

    def __init__(self, provider: "TracerProvider") -> None:
        # the packages of the extra may be missing, and a process without traces need not load them
        from opentelemetry import propagate, trace

        self._provider, self._trace, self._propagate = provider, trace, propagate
        self._tracer = provider.get_tracer("normscope")

    @property
    def fastapi_options(self) -> "TelemetryConfig":
        """The argument `telemetry` of the app."""
        return {
            "tracer_provider": self._provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": _is_untraced,
        }

    def describe_request(self, method: str, route: str, model: str, identity: str) -> None:
        """Names the span by its route, and adds the model and the id of the request; before the answer is sent."""
        span = self._trace.get_current_span()
        if not span.is_recording():
            return
        span.set_attribute("normscope.request_id", identity)
        if route.startswith("/"):
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
        if model:
            span.set_attribute("normscope.model", model)

    @contextmanager
    def open_call(self, method: str, metadata: Mapping[str, str]) -> Iterator[None]:
        """Around a request over gRPC: opens its span, below that of the client if `metadata` name one.

        Source: the semantic conventions of OpenTelemetry for gRPC.
        """
        with self._tracer.start_as_current_span(
            method,
            self._propagate.extract(metadata),
            self._trace.SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ):
            yield

    def describe_call(self, model: str, identity: str, code: str, *, failed: bool) -> None:
        """Adds to the span of `open_call` how it ends; `failed` if the code tells of a fault that is not the client's."""
        span = self._trace.get_current_span()
        if not span.is_recording():
            return
        span.set_attributes({"normscope.request_id": identity, "rpc.response.status_code": code})
        if model:
            span.set_attribute("normscope.model", model)
        if failed:
            span.set_attribute("error.type", code)
            span.set_status(self._trace.StatusCode.ERROR)

    def observe_inference(self, timing: Timing) -> None:
        """Adds the phases of a prediction that has just been made."""
        if not self._trace.get_current_span().is_recording():
            return
        phases = {
            "prepare": timing.input_ns,
            "queue": timing.queue_ns,
            "inference": timing.infer_ns + timing.output_ns,
        }
        start = time.time_ns() - sum(phases.values())
        for name, duration_ns in phases.items():
            self._tracer.start_span(name, start_time=start).end(start + duration_ns)
            start += duration_ns

    def close(self) -> None:
        """Sends what is left. Blocks for as long as OTEL_EXPORTER_OTLP_TIMEOUT if the collector does not answer."""
        self._provider.shutdown()


def tracing_from(environment: Mapping[str, str], version: str) -> Tracing | None:
    """The tracing that the environment asks for; None if it asks for none, or for one that is not to be had."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or exporter == "none" or not (exporter or endpoint):
        return None
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter not in {"", "otlp"}:
        _log.warning("no traces: OTEL_TRACES_EXPORTER=%s is not offered; set it to otlp or none", exporter)
        return None
    if protocol not in {None, "", "http/protobuf"}:
        _log.warning("no traces: the OTLP protocol %s is not offered; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", protocol)
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning(
            "no traces: the OTEL_ environment asks for them, but %s is not installed; pip install normscope[otel]", error.name
        )
        return None
    defaults = Resource.create({"service.name": "normscope", "service.version": version})
    provider = TracerProvider(resource=defaults.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _is_untraced(scope: MutableMapping[str, Any]) -> bool:
    return bool(scope["type"] != "http" or scope["path"].startswith(_UNTRACED))
