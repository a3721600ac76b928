"""Prometheus: names, units and buckets in one place."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from service.engine.model import Timing

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one app; a registry of its own, so that several apps in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "normscope_requests", "HTTP requests", ["method", "route", "model", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "normscope_request_seconds",
            "time from the first byte of a request to the last of its answer",
            ["method", "route", "model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._inference = Histogram(
            "normscope_inference_seconds",
            "time of all runs of a request with their statistics, without queue",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._queue = Histogram(
            "normscope_queue_seconds",
            "time that a request waited",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_size = Histogram(
            "normscope_batch_size",
            "inputs of a request that ran together, in runs of at most NORMSCOPE_MAX_BATCH_SIZE",
            ["model"],
            buckets=_SIZES,
            registry=self._registry,
        )

    def observe_request(self, method: str, route: str, model: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(method, route, model, str(status)).inc()
        self._latency.labels(method, route, model).observe(seconds)

    def observe_inference(self, model: str, inputs: int, timing: Timing) -> None:
        """Records the runs of one request."""
        self._inference.labels(model).observe(timing.inference_ms / 1000)
        self._queue.labels(model).observe(timing.queue_ms / 1000)
        self._batch_size.labels(model).observe(inputs)

    def expose(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
